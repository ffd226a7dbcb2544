"""Turns that call tools, in the form that a chat template takes: an object or JSON text, beside no text. Torch-free."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import RefusedTurnsError
from pipeline.models.rendering.reasoning import Turn

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
