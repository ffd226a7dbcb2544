"""A tokenizer's own chat template, which is foreign code: rendered in a sandbox, within limits. Torch-free."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateRuntimeError
from pydantic import JsonValue

from pipeline.config import ChatSettings
from pipeline.errors import RefusedTurnsError, UserError, nearest
from pipeline.models.rendering.calls import CallForm, calls_in_form, form_of, in_parts, takes_parts
from pipeline.models.rendering.reasoning import Turn, doubles_thoughts, renamed, taken_apart, thought_field
from pipeline.models.rendering.sandbox import render_limited
from pipeline.models.rendering.sources import compiled, problem_in, sources_of, variables_in
from pipeline.types import Message

_SURROGATE = re.compile("[\ud800-\udfff]")
_DEVELOPER = re.compile(r"""["']developer["']""")


@dataclass(frozen=True, slots=True)
class Rendering:
    """The values and the file that a policy's chat template is given, for reward models with the same template.

    ``shared``: the policy's own template; None: every model gets them. A model with another template keeps it as it is.
    """

    kwargs: Mapping[str, JsonValue]
    file: str | None
    shared: str | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Rendering":
        """The one that ``plain`` describes."""
        return cls(dict(plain["kwargs"]), plain["file"], plain["shared"])

    @property
    def plain(self) -> dict[str, JsonValue]:
        """Its fields as plain JSON."""
        return {"kwargs": {**self.kwargs}, "file": self.file, "shared": self.shared}

    def fits(self, tokenizer: Any) -> bool:
        """Whether a model with this tokenizer is rendered so."""
        return self.shared is None or self.shared == own_template(tokenizer)

    def template(self, tokenizer: Any, day: str) -> "ChatTemplate":
        """Return the template so rendered."""
        return ChatTemplate(tokenizer, day, file=self.file, kwargs=self.kwargs)


def own_template(tokenizer: Any) -> str:
    """Return the text of the tokenizer's own template, or templates; empty if it has none."""
    return str(tokenizer.chat_template or "")


def chosen_template(tokenizer: Any, settings: ChatSettings) -> "ChatTemplate | None":
    """Return the template that ``settings`` choose; None for contents that are joined without one.

    Raises:
        UserError: ``template: model``, or ``template_kwargs``, and no chat template; or as ``ChatTemplate``.
    """
    name, file = str(tokenizer.name_or_path or "the tokenizer"), settings.template_file
    if not tokenizer.chat_template and file is None:
        if settings.template_kwargs:
            raise UserError(f"chat.template_kwargs: {name} has no chat template that could read them")
        if settings.template == "model":
            raise UserError(f"chat.template: model, but {name} has none; use plain or auto")
        return None
    if settings.template == "plain":
        return None
    return ChatTemplate(tokenizer, settings.date, file=file, kwargs=settings.template_kwargs)


class ChatTemplate:
    """Renderer of messages by a tokenizer's chat template, or by a file that takes its place.

    Attributes:
        source: the text of the template; of a tokenizer with several, of the usual one and the one for tools.
    """

    def __init__(
        self,
        tokenizer: Any,
        today: str | None = None,
        *,
        file: str | None = None,
        kwargs: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """``tokenizer``: from transformers, with a chat template; with a ``file``, it may be missing (None).

        ``today``: the day (ISO 8601) that the template writes; None: the day on which it is rendered.
        ``kwargs``: values for the template's variables.

        Raises:
            UserError: a template that cannot be read, with file and line, or that reads none of a name in ``kwargs``.
        """
        self._name = str(tokenizer.name_or_path or "the tokenizer") if file is None else f"chat.template_file: {file}"
        self._words: dict[str, str] = {} if tokenizer is None else dict(tokenizer.special_tokens_map)
        what = self._name + (": its chat template cannot be read" if file is None else "")
        try:
            sources = self._sources = sources_of(tokenizer, file)
            self._usual = compiled(sources[0], today)
            self._with_tools = self._usual if sources[0] == sources[1] else compiled(sources[1], today)
        except UserError:
            raise
        except Exception as error:  # foreign code: anything may go wrong in it
            raise UserError(f"{what}{problem_in(error)}") from error
        self.source = "".join(dict.fromkeys(sources))
        self._kwargs = dict(kwargs or {})
        self._require_read(self._kwargs)
        self._developer = _DEVELOPER.search(self.source) is not None
        self._thought_field = thought_field(self.source)
        self._form: CallForm | None = None
        self._parts = takes_parts(self._rendered)
        self._apart = doubles_thoughts(self._rendered)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template reads besides those that every template is given."""
        read = (variables_in(source) for source in dict.fromkeys(self._sources))
        return frozenset(name for names in read for name in names) - {*self._words}

    def unread(self, names: Sequence[str]) -> list[str]:
        """Return those of ``names`` that are no variables of the template."""
        return [name for name in names if name not in self.variables]

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """Return the text of ``messages``; ``generation_prompt``: up to where an assistant's turn begins.

        A developer's turn is a system turn for templates that know no developer; a thought that begins a text is a
        field of its own for templates that would write their tags before it; contents are lists of one text for those
        that read no others.

        Raises:
            RefusedTurnsError: the template refuses these messages, fails, or goes beyond its limits.
        """
        turns = [self._plain(message) for message in messages if message.is_turn]
        if any(turn.get("tool_calls") for turn in turns):
            turns = calls_in_form(turns, self._call_form())
        if self._parts:
            turns = [in_parts(turn) for turn in turns]
        besides: dict[str, Message] = {message.role: message for message in messages if not message.is_turn}
        return self._render(turns, besides, generation_prompt)

    def _render(self, turns: Sequence[Turn], besides: Mapping[str, Message], generation_prompt: bool) -> str:
        held = {role: message.value for role, message in besides.items()}
        own = held.get("chat_template_kwargs")
        given = {
            **self._kwargs,
            **(own if isinstance(own, dict) else {}),
            "tools": held.get("tools"),
            "documents": held.get("documents"),
            "add_generation_prompt": generation_prompt,
            **self._words,
        }
        template = self._usual if given["tools"] is None else self._with_tools
        try:
            named = [renamed(turn, self._thought_field) for turn in turns]
            text = render_limited(template, {**given, "messages": named})
            if not text.isascii() and _SURROGATE.search(text):
                raise TemplateRuntimeError("writes half a character")
        except Exception as error:  # foreign code: anything may go wrong in it
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise RefusedTurnsError(
                f"{self._name}: its chat template refuses turns {roles}{problem_in(error)}"
            ) from error
        return text

    def _plain(self, message: Message) -> dict[str, object]:
        """Return the turn with the names that this template has."""
        plain = message.plain
        if message.role == "developer" and not self._developer:
            plain["role"] = "system"
        return taken_apart(plain) if self._apart else plain

    def _call_form(self) -> CallForm:
        if self._form is None:
            self._form = form_of(self._rendered)
        return self._form

    def _rendered(self, turns: Sequence[Turn]) -> str:
        return self._render(turns, {}, generation_prompt=False)

    def _require_read(self, kwargs: Mapping[str, JsonValue]) -> None:
        for name in kwargs:
            if name in self.variables:
                continue
            if name in self._words:
                raise UserError(f"chat.template_kwargs: {name} is the tokenizer's own")
            known = ", ".join(sorted(self.variables)) or "no variables"
            raise UserError(
                f"chat.template_kwargs: {name}: {self._name}: its chat template does not read it; it reads {known}"
                f"{nearest(name, self.variables)}"
            )
