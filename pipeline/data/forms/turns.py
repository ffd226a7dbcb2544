"""Turns of a conversation in the forms that data sets have them in. Torch-free."""

import json
from itertools import takewhile

from pydantic import JsonValue

from pipeline.data.forms.cells import FaultError, absent, kind
from pipeline.data.forms.roles import CALLS, ROLES
from pipeline.data.forms.spelled import decoded_json
from pipeline.data.forms.transcripts import is_transcript, transcript
from pipeline.types import Message, Role

Turns = tuple[Message, ...]

_REASONING = ("reasoning_content", "reasoning", "thinking")


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
    return tuple(turn for turn in found if turn.role != "system" or turn.content.strip())


def _message(item: JsonValue, place: int, column: str) -> Message:
    """Parse one turn: {role, content}, or {from, value} as in ShareGPT; content is text or a list of text parts."""
    turn = item if isinstance(item, dict) else {}
    said, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    name = said.strip().casefold() if isinstance(said, str) else None
    where = f"{column}: message {place}"
    if name in CALLS:
        return Message("assistant", "", _json({"tool_calls": _calls(content, where)}, where))
    role = None if name is None else ROLES.get(name)
    if name is not None and role is None:
        raise FaultError(f"{where} has role {said!r}; allowed: {', '.join((*ROLES, *sorted(CALLS)))}")
    extra = {} if role is None else _extra(role, turn, where)
    content = _content(content, role, extra)
    if role is None or not isinstance(content, str):
        raise FaultError(f"{where} must have the strings role and content")
    return Message(role, content, _json(extra, where) if extra else "")


def _content(content: JsonValue, role: Role | None, extra: dict[str, JsonValue]) -> JsonValue:
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if role == "tool" and isinstance(content, dict | list):
        return json.dumps(content, ensure_ascii=False)
    # A turn that only calls tools says nothing.
    return "" if content is None and "tool_calls" in extra else content


def _extra(role: Role, turn: dict[str, JsonValue], where: str) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    if role == "assistant":
        calls = turn.get("tool_calls") or turn.get("function_call")
        if calls:
            found["tool_calls"] = _calls(calls, where)
        reasoning = next((turn[name] for name in _REASONING if turn.get(name)), None)
        if isinstance(reasoning, str):
            found["reasoning_content"] = reasoning
    if role == "tool":
        found |= {name: turn[name] for name in ("name", "tool_call_id") if isinstance(turn.get(name), str)}
    return found


def _calls(value: JsonValue, where: str) -> list[JsonValue]:
    """Parse calls in OpenAI's form, or plain {name, arguments}; each may be JSON text."""
    listed = _plain(value, where)
    return [_call(call, where) for call in (listed if isinstance(listed, list) else [listed])]


def _call(value: JsonValue, where: str) -> JsonValue:
    call = value if isinstance(value, dict) else {}
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FaultError(f"{where}: a tool call must have a name, as in {{function: {{name, arguments}}}}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        # Templates write arguments as JSON themselves.
        arguments = _plain(arguments, where) if arguments.strip() else {}
    plain: JsonValue = {"name": function["name"], "arguments": arguments}
    own: JsonValue = {"type": "function", "function": plain}
    return {"id": call["id"], **own} if isinstance(call.get("id"), str) and isinstance(own, dict) else own


def tools_turn(value: JsonValue, column: str) -> Turns:
    """Return the turn that lists the tools; none if there are none."""
    listed = None if absent(value) else _plain(value, column)
    if not listed:
        return ()
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise FaultError(f"{column}: must be a list of tools, each an object, not {kind(listed)}")
    return (Message("tools", _json(listed, column)),)


def _plain(value: JsonValue, where: str) -> JsonValue:
    """Return ``value``, read if it is JSON text, without the nulls that Arrow fills objects with."""
    if isinstance(value, str):
        try:
            value = decoded_json(value)
        except json.JSONDecodeError as error:
            raise FaultError(f"{where}: neither an object nor its JSON: {kind(value)}") from error
        except ValueError as error:
            raise FaultError(f"{where}: its JSON {error}") from error
    return _without_nulls(value)


def _without_nulls(value: JsonValue) -> JsonValue:
    match value:
        case dict():
            return {name: _without_nulls(held) for name, held in value.items() if held is not None}
        case list():
            return [_without_nulls(item) for item in value]
    return value


def _json(value: JsonValue | dict[str, JsonValue], where: str) -> str:
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
    system = tuple(takewhile(lambda turn: turn.role == "system", turns))
    return system, turns[len(system) :]


def same_turns(some: Turns, others: Turns) -> bool:
    """Return whether the turns are equal, ignoring spaces around contents."""
    return len(some) == len(others) and all(
        (one.role, one.content.strip(), one.extra) == (other.role, other.content.strip(), other.extra)
        for one, other in zip(some, others, strict=True)
    )


def is_conversation(value: JsonValue) -> bool:
    """Return whether a cell holds turns: messages, or a transcript."""
    return isinstance(value, list | dict) or (isinstance(value, str) and is_transcript(value))


def conversation(value: JsonValue, column: str) -> Turns:
    """Parse messages or a transcript."""
    return transcript(value) if isinstance(value, str) else messages(value, column)
