"""A tokenizer's own chat template, which is foreign code: rendered in a sandbox, within limits. Torch-free."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateRuntimeError

from pipeline.errors import RefusedTurnsError, UserError
from pipeline.models.rendering.filters import limited_filters
from pipeline.models.rendering.sandbox import LimitedSandbox, render_limited
from pipeline.types import Message

LONGEST_SOURCE = 1 << 20  # characters of a template; the longest of known models have 20 thousand
_LONGEST_DATE = 1 << 10  # characters of a format for strftime, which may write 256 times as many
_SURROGATE = re.compile("[\ud800-\udfff]")


class ChatTemplate:
    """Renderer of messages by a tokenizer's chat template."""

    def __init__(self, tokenizer: Any, today: str | None = None) -> None:
        """``tokenizer``: from transformers, with a chat template; ``today``: the day (ISO 8601) that it writes.

        None: the day on which it is rendered. Raises ``UserError`` for a template that cannot be read.
        """
        self._name = str(tokenizer.name_or_path or "the tokenizer")
        try:
            self.source = str(tokenizer.get_chat_template())
            self._words: dict[str, str] = dict(tokenizer.special_tokens_map)
            self._compiled = _compiled(self.source, today)
        except Exception as error:  # foreign code: anything may go wrong in it
            raise UserError(f"{self._name}: its chat template cannot be read: {_said(error)}") from error

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """Return the text of ``messages``; ``generation_prompt``: up to where an assistant's turn begins.

        Raises:
            RefusedTurnsError: the template refuses these messages, fails, or goes beyond its limits.
        """
        tools = next((json.loads(message.content) for message in messages if message.role == "tools"), None)
        turns = [message.plain for message in messages if message.role != "tools"]
        given = {"tools": tools, "documents": None, "add_generation_prompt": generation_prompt, **self._words}
        try:
            text = render_limited(self._compiled, {**given, "messages": turns})
            if not text.isascii() and _SURROGATE.search(text):
                raise TemplateRuntimeError("writes half a character")
        except Exception as error:  # foreign code: anything may go wrong in it
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise RefusedTurnsError(f"{self._name}: its chat template refuses turns {roles}: {_said(error)}") from error
        return text


def _compiled(source: str, today: str | None) -> Template:
    """Compile ``source`` with the filters, functions and block tags that transformers gives to chat templates."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if len(source) > LONGEST_SOURCE:
        raise TemplateRuntimeError(f"{len(source)} characters; at most {LONGEST_SOURCE}")
    # transformers calls no template when it compiles one; an empty one gives its settings at no risk.
    theirs = _compile_jinja_template("").environment
    ours = LimitedSandbox(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    own = ("lipsum", "namespace", "strftime_now")
    ours.globals |= {name: found for name, found in theirs.globals.items() if name not in own}
    ours.globals["strftime_now"] = _short_dates(
        theirs.globals["strftime_now"] if today is None else datetime.fromisoformat(today).strftime
    )
    ours.filters |= limited_filters({"tojson": theirs.filters["tojson"]})
    return ours.from_string(source)


def _short_dates(now: Callable[[str], str]) -> Callable[[str], str]:
    def limited(format_: str) -> str:
        if len(format_) > _LONGEST_DATE:
            raise TemplateRuntimeError(f"a date's format of {len(format_)} characters")
        return now(format_)

    return limited


def _said(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:300]
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__}: {said}".removesuffix(": ")
