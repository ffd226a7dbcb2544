"""The forms that a chat template takes: calls as objects or JSON text, contents as texts or lists. Torch-free."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RefusedTurnsError
from pipeline.models.rendering.reasoning import Turn
from pipeline.types import Message

_ASKED: Turn = {"role": "user", "content": "x"}
_PROBE = "prefloopcalled"
_OBJECT: dict[str, object] = {"a": _PROBE}
_TEXT = json.dumps(_OBJECT)


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a template takes of a turn that calls tools.

    Attributes:
        arguments_as_text: arguments are JSON text, as in DeepSeek R1, which adds them to a text; else an object.
        empty_as_none: a turn that says nothing has the content None, as in OpenAI's form; else an empty text.
    """

    arguments_as_text: bool = False
    empty_as_none: bool = False


def form_of(render: Callable[[Sequence[Turn]], str]) -> CallForm:
    """Find the form by rendering turns in each. ``render`` raises ``RefusedTurnsError``."""

    def rendered(content: str | None, arguments: object) -> str | None:
        call = {"id": "callprobe1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        try:
            return render([_ASKED, {"role": "assistant", "content": content, "tool_calls": [call]}])
        except RefusedTurnsError:
            return None

    forms = [CallForm(as_text, as_none) for as_text in (False, True) for as_none in (True, False)]
    for form in forms:
        arguments = _TEXT if form.arguments_as_text else _OBJECT
        text = rendered(None if form.empty_as_none else "", arguments)
        # Python writes an object with other quotes than JSON, and None as a word.
        if text is None or _PROBE not in text or repr(_OBJECT) in text:
            continue
        if not form.empty_as_none or text.count("None") <= (rendered("", arguments) or text).count("None"):
            return form
    return CallForm()


def end_of_calls(render: Callable[[Sequence[Message], bool], str], tokenizer: Any, stops: Sequence[str]) -> int | None:
    """Return the id of the token that ends a turn that calls tools, such as ``<|call|>``; None if there is none.

    It is the special token with which the turn ends, or that of ``stops`` with which the result after it begins.
    ``render``: that of a chat template.
    """
    special = {str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids)}
    special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    call = {"id": "callprobe", "type": "function", "function": {"name": "f", "arguments": _OBJECT}}
    talk = [Message("user", "x"), Message("assistant", "", json.dumps({"tool_calls": [call]}))]
    try:
        called = render(talk, False).rstrip()
        result = Message("tool", "y", json.dumps({"name": "f", "tool_call_id": "callprobe"}))
        rest = render([*talk, result], False)[len(called) :].lstrip() if stops else ""
    except RefusedTurnsError:
        return None
    ends = [token for token in special if called.endswith(token)] or [one for one in stops if rest.startswith(one)]
    return int(tokenizer.convert_tokens_to_ids(max(ends, key=len))) if ends and _PROBE in called else None


def takes_parts(render: Callable[[Sequence[Turn]], str]) -> bool:
    """Whether a template writes a content only if it is a list of parts, as of models that read images."""

    def written(content: object) -> bool:
        turns: list[Turn] = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            return render(turns).count(_PROBE) == len(turns)
        except RefusedTurnsError:
            return False

    return not written(_PROBE) and written([{"type": "text", "text": _PROBE}])


def in_parts(turn: Turn) -> Turn:
    """Return the turn, its content a list of one text."""
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def calls_in_form(turns: Sequence[Turn], form: CallForm) -> list[Turn]:
    """Return the turns, those with calls in the form."""
    return [_in_form(turn, form) if turn.get("tool_calls") else turn for turn in turns]


def _in_form(turn: Turn, form: CallForm) -> Turn:
    found = dict(turn)
    calls = turn["tool_calls"]
    if form.arguments_as_text and isinstance(calls, list):
        found["tool_calls"] = [_with_text(call) for call in calls]
    if form.empty_as_none and not str(turn.get("content") or "").strip():
        found["content"] = None
    return found


def _with_text(call: object) -> object:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
