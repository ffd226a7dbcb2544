"""Parts of a conversation that a chat template leaves out, found by rendering it with each part changed. Torch-free.

What is left out depends on the kind of the row: a template may write calls of tools, and leave out the text beside
them. So each kind of row is tried once, with the first row that is of it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from pipeline.errors import RefusedTurnsError
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message

_PROBE = "prefloopprobe"
# Names inside tools and calls that say what a value is, not what it says.
_KINDS = frozenset(("type", "id"))
_MOST_KINDS = 10_000
_CONTENT, _CALLS, _CALL_IDS, _REASONING = "content", "tool_calls", "tool_call ids", "reasoning_content"
_VARIABLES = "chat_template_kwargs"
_CONTENTS = {"system": "system turns", "developer": "developer turns", "user": "user turns", "tool": "tool results"}
# Fields that hold content, and the names of some of them.
_FIELDS = {_CALLS: "tool calls", _REASONING: "reasoning", _CALL_IDS: "tool_call_id"}
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_OF_CONTENT = frozenset((_CONTENT, _CALLS, _REASONING, *_MEDIA))

# Contents that are written where there is no template.
_JOINED = frozenset(("system turns", "developer turns", "user turns", "texts", "text beside tool calls"))

# What tells a message from others: its role, that of the one before it, whether it has a text, its fields.
_Kind = tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """Names of parts of a conversation.

    Attributes:
        content: what is said or given: turns, tools, documents, calls, results, reasoning, images, variables.
        fields: further fields of turns.
    """

    content: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """A field of the message at ``place``, and what it is called."""

    place: int
    field: str
    name: str


class Unread:
    """Finds what a format leaves out of conversations."""

    def __init__(self, template: ChatTemplate | None) -> None:
        """``template``: None for contents that are joined, with all else left out."""
        self._template = template
        self._known: dict[tuple[object, ...], tuple[_Part, ...]] = {}
        self._reasons: bool | None = None

    def of(self, messages: Sequence[Message], answers: Sequence[Message]) -> LeftOut:
        """Return what is left out of a prompt and its answers.

        Reasoning in earlier turns counts only if the template writes none in an answer: most drop it on purpose.

        Raises:
            RefusedTurnsError: the template refuses the conversation.
        """
        prompt = tuple(dict.fromkeys(_kind(messages, place) for place in range(len(messages))))
        found = list(self._cached(prompt, messages, None))
        for answer in answers:
            found += self._cached((*prompt, _kind([*messages, answer], len(messages))), messages, answer)
        names = {part.name: part.field in _OF_CONTENT for part in found}
        names |= dict.fromkeys((f"{_VARIABLES} {name}" for name in self._unread_variables(messages)), True)
        content = tuple(name for name, is_content in names.items() if is_content)
        return LeftOut(content, tuple(name for name in names if name not in content))

    def _cached(self, kind: tuple[_Kind, ...], messages: Sequence[Message], answer: Message | None) -> Iterable[_Part]:
        key = (answer is None, kind)
        if key not in self._known:
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            self._known[key] = tuple(self._left_out(messages, answer))
        return self._known[key]

    def _left_out(self, messages: Sequence[Message], answer: Message | None) -> Iterator[_Part]:
        talk = [*messages] if answer is None else [*messages, answer]
        last = {_kind(talk, place): place for place in range(len(messages))}
        parts = [part for place in sorted(last.values()) for part in _parts(talk[place], place)]
        if answer is not None:
            parts = [*_parts(answer, len(messages))]
        if self._template is None:
            yield from (part for part in parts if part.field != _CONTENT or part.name not in _JOINED)
            return
        as_it_is = self._template.render(talk, answer is None)
        for part in parts:
            kept_back = answer is None and part.field == _REASONING and self._reasons_in_answers(self._template)
            if not kept_back and not self._is_read(self._template, talk, part, as_it_is, answer is None):
                yield part

    def _is_read(self, template: ChatTemplate, talk: Sequence[Message], part: _Part, text: str, asks: bool) -> bool:
        changed = [*talk]
        changed[part.place] = _changed(talk[part.place], part.field)
        try:
            return template.render(changed, asks) != text
        except RefusedTurnsError:
            return True  # it looked

    def _reasons_in_answers(self, template: ChatTemplate) -> bool:
        if self._reasons is None:
            thought = Message("assistant", "y", json.dumps({_REASONING: _PROBE}))
            try:
                self._reasons = _PROBE in template.render([Message("user", "x"), thought], False)
            except RefusedTurnsError:
                self._reasons = False
        return self._reasons

    def _unread_variables(self, messages: Sequence[Message]) -> list[str]:
        own = next((message.value for message in messages if message.role == _VARIABLES), None)
        names = [*own] if isinstance(own, dict) else []
        return names if self._template is None else self._template.unread(names)


def _kind(talk: Sequence[Message], place: int) -> _Kind:
    message = talk[place]
    before = talk[place - 1].role if place else "none"
    return (message.role, before, "text" if message.content.strip() else "", *sorted(message.fields))


def _parts(message: Message, place: int) -> Iterator[_Part]:
    if message.role == _VARIABLES:
        return
    if not message.is_turn:
        yield _Part(place, _CONTENT, message.role)
        return
    fields = message.fields
    if message.content.strip():
        beside = "text beside tool calls" if _CALLS in fields else "texts"
        yield _Part(place, _CONTENT, _CONTENTS.get(message.role, beside))
    for name in [*fields, *([_CALL_IDS] if _has_ids(fields.get(_CALLS)) else [])]:
        yield _Part(place, name, _FIELDS.get(name, name))


def _has_ids(calls: JsonValue) -> bool:
    return isinstance(calls, list) and any(isinstance(call, dict) and "id" in call for call in calls)


def _changed(message: Message, field: str) -> Message:
    """Return the message with another value in ``field``."""
    if not message.is_turn:
        return replace(message, content=json.dumps(_other(message.value)))
    if field == _CONTENT:
        return replace(message, content=message.content + _PROBE)
    fields = message.fields
    if field == _CALL_IDS:
        calls = fields[_CALLS]
        listed = calls if isinstance(calls, list) else []
        changed: JsonValue = [
            {**call, "id": f"{call['id']}{_PROBE}"} if isinstance(call, dict) and "id" in call else call
            for call in listed
        ]
        return replace(message, extra=json.dumps({**fields, _CALLS: changed}))
    return replace(message, extra=json.dumps({**fields, field: _other(fields[field])}))


def _other(value: JsonValue) -> JsonValue:
    """Return another value of the same form."""
    match value:
        case str():
            return value + _PROBE
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [_other(item) for item in value] or [_PROBE]
        case dict():
            return {name: held if name in _KINDS else _other(held) for name, held in value.items()}
    return _PROBE
