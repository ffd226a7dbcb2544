"""A tokenizer's own chat template, which is foreign code: rendered in a sandbox, within limits. Torch-free.

jinja2's sandbox keeps a template from files and from Python's insides, not from loops without end or from texts that
fill the memory. The limits hold in any thread: loops and calls look at the thread's own CPU time, and no text, list or
number may become larger than a conversation can be.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import Template, TemplateError, TemplateRuntimeError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipeline.errors import RefusedTurnsError, UserError
from pipeline.types import Message

LONGEST_SOURCE = 1 << 20  # characters of a template; the longest of known models have 20 thousand
CPU_SECONDS = 10.0  # of one rendering; known templates take a millisecond
LARGEST_TEXT = 128 << 20  # characters of a text, items of a list
_NUMBER_BITS = 1 << 16
_LOOKS_EVERY = 64  # steps between two looks at the clock
# Not Python names, so that no template can spell them.
_METER, _COUNTED, _JOINED = "meter!", "counted!", "joined!"
_WIDTH = re.compile(r"[0-9]{7}|\*")
_WIDE_FORMAT = re.compile(r"%[-+ #.(0-9]{0,20}[0-9]{7}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class ChatTemplate:
    """Renderer of messages by a tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: from transformers, with a chat template. Raises ``UserError`` for one that cannot be read."""
        self._name = str(tokenizer.name_or_path or "the tokenizer")
        try:
            self.source = str(tokenizer.get_chat_template())
            self._words: dict[str, str] = dict(tokenizer.special_tokens_map)
            self._compiled = _compiled(self.source)
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


def render_limited(template: Template, values: dict[str, Any]) -> str:
    """Render a template of ``LimitedSandbox``. Raises whatever the template raises, of any type."""
    return template.render({**values, _METER: _Meter()})


class _Meter:
    """The CPU time that one rendering has left."""

    def __init__(self) -> None:
        self._steps = 0
        self._end = time.thread_time() + CPU_SECONDS

    def step(self, look: bool = False) -> None:
        """Count one step; ``look`` at the clock in any case. Raises ``TemplateRuntimeError`` when the time is up."""
        self._steps += 1
        if (look or self._steps % _LOOKS_EVERY == 0) and time.thread_time() > self._end:
            raise TemplateRuntimeError(f"takes more than {CPU_SECONDS:g} s of CPU time; does it loop?")


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with limits on time and sizes."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        """``options``: those of jinja2's ``Environment``."""
        super().__init__(**options)
        self.filters = {name: _bounded(filter_) for name, filter_ in self.filters.items()}
        self.filters |= {_COUNTED: _counted, _JOINED: _joined}
        del self.globals["lipsum"]  # writes as many paragraphs as it is asked for

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of a whole rendering."""
        kept, length = [], 0
        for part in parts:
            length += len(part)
            if length > LARGEST_TEXT:
                _sized(range(length))
            kept.append(part)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        """Call a function, method or macro of the template's."""
        meter = __context.parent[_METER]
        meter.step()
        _require_small([*args, *kwargs.values()])
        found = _sized(super().call(__context, __obj, *args, **kwargs))
        if isinstance(found, str) and len(found) > LONGEST_SOURCE:
            meter.step(look=True)
        return found

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the safe form of ``str.format``; None if ``value`` is something else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDTH.search(value.__self__):
            raise TemplateRuntimeError("formats with a width of millions")
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` unless the result would be too large."""
        numbers = isinstance(left, int) and isinstance(right, int)
        match operator:
            case "*" if numbers:
                _require_bits(left.bit_length() + right.bit_length())
            case "*":
                for many, times in ((left, right), (right, left)):
                    if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
                        _require_length(len(many) * times)
            case "**" if numbers and right > 0:
                _require_bits(left.bit_length() * right)
            case "+" if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                _require_length(len(left) + len(right))
            case "%" if isinstance(left, str | bytes) and _WIDTH.search(str(left)):
                raise TemplateRuntimeError("formats with a width of millions")
        return super().call_binop(context, operator, left, right)


class _Counting(NodeTransformer):
    """Lets each loop count its steps and each ``~`` measure what it joins."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), _JOINED, [], [], None, None, lineno=node.lineno)


@pass_context
def _counted(context: Context, items: Iterable[object]) -> Iterator[object]:
    meter = context.parent[_METER]
    for item in items:
        meter.step()
        yield item


def _joined(parts: Iterable[object]) -> str:
    return LimitedSandbox.concat(map(str, parts))


def _bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _require_small([*args, *kwargs.values()])
        return _sized(filter_(*args, **kwargs))

    return bounded


def _compiled(source: str) -> Template:
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
    ours.globals |= {name: found for name, found in theirs.globals.items() if name != "lipsum"}
    ours.filters["tojson"] = _bounded(theirs.filters["tojson"])
    return ours.from_string(source)


def _require_small(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST_TEXT:
            raise TemplateRuntimeError("a number as large as no conversation")
        # The widths in what is formatted: '%9999999d'.
        if isinstance(value, str) and "%" in value and _WIDE_FORMAT.search(value):
            raise TemplateRuntimeError("formats with a width of millions")


def _require_bits(bits: int) -> None:
    if bits > _NUMBER_BITS:
        raise TemplateRuntimeError(f"a number of {bits} bits")


def _require_length(length: int) -> None:
    if length > LARGEST_TEXT:
        raise TemplateRuntimeError(f"a text or list of {length} items; at most {LARGEST_TEXT}")


def _sized(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict | range):
        _require_length(len(value))
    return value


def _said(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:300]
    return said if isinstance(error, TemplateError) and said else f"{type(error).__name__}: {said}".removesuffix(": ")
