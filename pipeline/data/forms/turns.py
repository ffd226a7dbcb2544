"""Turns of a conversation in the forms that data sets have them in. Torch-free."""

import json
from dataclasses import replace
from itertools import takewhile

from pydantic import JsonValue

from pipeline.data.forms.cells import FaultError, absent, kind
from pipeline.data.forms.roles import CALLS, ROLES
from pipeline.data.forms.spelled import decoded_json
from pipeline.data.forms.transcripts import is_transcript, transcript
from pipeline.types import Message, Role

Turns = tuple[Message, ...]

_REASONING = ("reasoning_content", "reasoning", "thinking")
# What a turn is read from; its other fields are kept as they are.
_OWN = frozenset(("role", "from", "content", "value", "function_call", "tool_calls", *_REASONING))
_SYSTEM = frozenset(("system", "developer"))
_TEXT_PARTS = ("text", "input_text", "output_text")
_PARTS = (*_TEXT_PARTS, "image", "image_url", "input_image", "audio", "input_audio", "video", "file", "refusal")


def messages(value: JsonValue, column: str) -> Turns:
    """Parse a list of {role, content}, or one such object; a string is a user message, an empty system turn is none."""
    if isinstance(value, str):
        if not value.strip():
            raise FaultError(f"{column}: is empty")
        return (Message("user", value),)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise FaultError(f"{column}: must be a string or a list of messages, not {kind(value)}")
    found = (_message(item, place, column) for place, item in enumerate(value, 1))
    return tuple(turn for turn in found if turn.role not in _SYSTEM or turn.content.strip())


def _message(item: JsonValue, place: int, column: str) -> Message:
    """Parse one turn: {role, content}, or {from, value} as in ShareGPT; content is text or a list of text parts."""
    turn = item if isinstance(item, dict) else {}
    said, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    name = said.strip().casefold() if isinstance(said, str) else None
    where = f"{column}: message {place}"
    if name in CALLS:
        return Message("assistant", "", as_json({"tool_calls": _calls(content, where)}, where))
    role = None if name is None else ROLES.get(name)
    if name is not None and role is None:
        raise FaultError(f"{where} has role {said!r}; allowed: {', '.join((*ROLES, *sorted(CALLS)))}")
    extra = {} if role is None else _extra(role, turn, where)
    content = _content(content, role, extra, where)
    if role is None or not isinstance(content, str):
        raise FaultError(f"{where} must have the strings role and content")
    return Message(role, content, as_json(extra, where) if extra else "")


def _content(content: JsonValue, role: Role | None, extra: dict[str, JsonValue], where: str) -> JsonValue:
    if isinstance(content, list) and content and (role != "tool" or all(map(_is_part, content))):
        return "".join(_text(part, where) for part in content)
    if role == "tool" and isinstance(content, dict | list):
        return json.dumps(content, ensure_ascii=False)
    # A turn that only calls tools says nothing.
    return "" if content is None and "tool_calls" in extra else content


def _is_part(value: JsonValue) -> bool:
    """Whether an item of a tool's result is a part of a content; a result may also be a list of anything."""
    return isinstance(value, dict) and (value.get("type") in _PARTS or [*value] == ["text"])


def _text(part: JsonValue, where: str) -> str:
    """Return the text of a part of a content. Raises ``FaultError`` that names what else it is."""
    held = {name: value for name, value in part.items() if not absent(value)} if isinstance(part, dict) else {}
    what = held.get("type", "text" if "text" in held else next(iter(held), kind(part)))
    if what not in _TEXT_PARTS or not isinstance(held.get("text", ""), str):
        raise FaultError(f"{where} has a part of the kind {what!r}; of a list of parts, only text is read")
    return str(held.get("text", ""))


def _extra(role: Role, turn: dict[str, JsonValue], where: str) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    calls = turn.get("tool_calls") or turn.get("function_call")
    reasoning = next((turn[name] for name in _REASONING if turn.get(name)), None)
    for name, value in {"tool_calls": calls, "reasoning_content": reasoning}.items():
        if value and role != "assistant":
            raise FaultError(f"{where} has {name}, which only an assistant's turn can have, not one of role {role!r}")
    if calls:
        found["tool_calls"] = _calls(calls, where)
    if reasoning is not None and not isinstance(reasoning, str):
        raise FaultError(f"{where}: its reasoning must be a string, not {kind(reasoning)}")
    if reasoning:
        found["reasoning_content"] = reasoning
    others = {name: value for name, value in turn.items() if name not in _OWN and not absent(value)}
    return found | {name: _writable(value) for name, value in others.items() if value not in ([], {})}


def _writable(value: JsonValue) -> JsonValue:
    """Return the value as JSON can hold it: of dates and bytes, the kind."""
    held: JsonValue = json.loads(json.dumps(without_nulls(value), default=lambda other: type(other).__name__))
    return held


def _calls(value: JsonValue, where: str) -> list[JsonValue]:
    """Parse calls in OpenAI's form, or plain {name, arguments}; each may be JSON text."""
    listed = plain_json(value, where)
    return [_call(call, where) for call in (listed if isinstance(listed, list) else [listed])]


def _call(value: JsonValue, where: str) -> JsonValue:
    call = value if isinstance(value, dict) else {}
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FaultError(f"{where}: a tool call must have a name, as in {{function: {{name, arguments}}}}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        # Templates write arguments as JSON themselves.
        arguments = plain_json(arguments, where) if arguments.strip() else {}
    plain: JsonValue = {"name": function["name"], "arguments": arguments}
    own: JsonValue = {"type": "function", "function": plain}
    return {"id": call["id"], **own} if isinstance(call.get("id"), str) and isinstance(own, dict) else own


def plain_json(value: JsonValue, where: str) -> JsonValue:
    """Return ``value``, read if it is JSON text, without the nulls that Arrow fills objects with."""
    if isinstance(value, str):
        try:
            value = decoded_json(value)
        except json.JSONDecodeError as error:
            raise FaultError(f"{where}: neither an object nor its JSON: {kind(value)}") from error
        except ValueError as error:
            raise FaultError(f"{where}: its JSON {error}") from error
    return without_nulls(value)


def without_nulls(value: JsonValue) -> JsonValue:
    """Return the value without the nulls that Arrow fills objects with."""
    match value:
        case dict():
            return {name: without_nulls(held) for name, held in value.items() if held is not None}
        case list():
            return [without_nulls(item) for item in value]
    return value


def as_json(value: JsonValue | dict[str, JsonValue], where: str) -> str:
    """Return the value as JSON. Raises ``FaultError`` if JSON cannot hold it."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FaultError(f"{where}: cannot be written as JSON: {str(error)[:80]}") from error


def history_turns(value: JsonValue, column: str) -> Turns:
    """Parse earlier exchanges: a list of [user, assistant], or messages; empty is none."""
    if absent(value) or value == []:
        return ()
    if isinstance(value, str) and is_transcript(value):
        return _before_answer(transcript(value))
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        found: list[Message] = []
        for place, exchange in enumerate(value, 1):
            match exchange:
                case [str(asked), str(answered)]:
                    found += [Message("user", asked), Message("assistant", answered)]
                case _:
                    raise FaultError(f"{column}, item {place}: must be the texts of [user, assistant]")
        return tuple(found)
    return messages(value, column)


def prompt_turns(value: JsonValue, column: str) -> Turns:
    """Parse a prompt: turns that end with the user's, or with a tool's result; a transcript; a text."""
    if isinstance(value, str) and is_transcript(value):
        found = _before_answer(transcript(value))
    else:
        found = messages(value, column)
    if not found or found[-1].role not in ("user", "tool"):
        last = repr(found[-1].role) if found else "nothing"
        raise FaultError(f"{column}: must end with a user message, not with {last}")
    return found


def _before_answer(turns: Turns) -> Turns:
    """Return a transcript's turns without a last one that is only begun: the assistant's, which is to come."""
    return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns


def with_history(history: Turns, turns: Turns, column: str) -> Turns:
    """Return the prompt's ``turns`` after the earlier ones, system turns first; what both hold is there once.

    Raises ``FaultError`` for two system turns that differ.
    """
    system, later = _system_and_others(turns)
    known, earlier = _system_and_others(history)
    if known and system and not same_turns(known, system):
        raise FaultError(f"{column}: a system turn, but the prompt has another one")
    whole = len(earlier)
    if any(same_turns(later[at : at + whole], earlier) for at in range(len(later) - whole + 1)):
        return (*(system or known), *later)
    shared = next((n for n in range(min(whole, len(later)), 0, -1) if same_turns(earlier[-n:], later[:n])), 0)
    return (*(system or known), *earlier, *later[shared:])


def _system_and_others(turns: Turns) -> tuple[Turns, Turns]:
    system = tuple(takewhile(lambda turn: turn.role in _SYSTEM, turns))
    return system, turns[len(system) :]


def system_merged(turns: Turns) -> Turns:
    """Return the turns with the text of system turns before that of the first user turn."""
    said = [turn.content.strip() for turn in turns if turn.role in _SYSTEM]
    others = [turn for turn in turns if turn.role not in _SYSTEM]
    first = next((place for place, turn in enumerate(others) if turn.role == "user"), None)
    if not said or first is None:
        return turns
    others[first] = replace(others[first], content="\n\n".join((*said, others[first].content)))
    return tuple(others)


def same_turns(some: Turns, others: Turns) -> bool:
    """Return whether the turns are equal, ignoring spaces around contents."""
    return len(some) == len(others) and all(
        (one.role, one.content.strip(), one.said) == (other.role, other.content.strip(), other.said)
        for one, other in zip(some, others, strict=True)
    )


def is_conversation(value: JsonValue) -> bool:
    """Return whether a cell holds turns: messages, or a transcript."""
    return isinstance(value, list | dict) or (isinstance(value, str) and is_transcript(value))


def conversation(value: JsonValue, column: str) -> Turns:
    """Parse messages or a transcript."""
    return transcript(value) if isinstance(value, str) else messages(value, column)
