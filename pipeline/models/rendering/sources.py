"""The text of a chat template, from a tokenizer or a file, compiled in the sandbox. Torch-free."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateRuntimeError, meta, nodes

from pipeline.config.policy import RESERVED
from pipeline.errors import UserError
from pipeline.models.rendering.filters import limited_filters
from pipeline.models.rendering.sandbox import LimitedSandbox

LONGEST_SOURCE = 1 << 20  # characters of a template; the longest of known models have 20 thousand
_LONGEST_DATE = 1 << 10  # characters of a format for strftime, which may write 256 times as many
# The template for conversations with tools, of tokenizers that have several.
_FOR_TOOLS = "tool_use"


def sources_of(tokenizer: Any, file: str | None) -> tuple[str, str]:
    """Return the text of the usual template and of the one for conversations with tools, mostly the same.

    Raises ``UserError`` for a ``file`` that cannot be read.
    """
    if file is not None:
        text = template_in(file)
        return text, text
    several = tokenizer.chat_template
    usual = str(tokenizer.get_chat_template())
    return usual, str(several[_FOR_TOOLS]) if isinstance(several, dict) and _FOR_TOOLS in several else usual


def template_in(file: str) -> str:
    """Return the text of ``chat.template_file``. Raises ``UserError`` if it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"chat.template_file: {file}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"chat.template_file: {file}: cannot be read ({reason})") from None


def compiled(source: str, today: str | None) -> Template:
    """Compile ``source`` with the filters, functions and block tags that transformers gives to chat templates.

    Raises whatever compiling raises, of any type; ``TemplateRuntimeError`` for a text beyond ``LONGEST_SOURCE``.
    """
    if len(source) > LONGEST_SOURCE:
        raise TemplateRuntimeError(f"{len(source)} characters; at most {LONGEST_SOURCE}")
    template = _sandbox(today).from_string(source)
    # Every rendering goes through them twice, and jinja2's chain of mappings is slow.
    template.globals = {**template.globals}
    return template


def variables_in(source: str) -> frozenset[str]:
    """Return the names that a template reads besides the conversation.

    Names that it sets itself count only if it asks whether they are set.
    """
    tree = _sandbox(None).plain_tree(source)
    read = meta.find_undeclared_variables(tree) - {*RESERVED}
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param")}
    tests = [test for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")]
    defaults = [filter_ for filter_ in tree.find_all(nodes.Filter) if filter_.name in ("default", "d")]
    asked = {about.node.name for about in (*tests, *defaults) if isinstance(about.node, nodes.Name)}
    return frozenset(name for name in read if name not in own or name in asked)


def _sandbox(today: str | None) -> LimitedSandbox:
    from transformers.utils.chat_template_utils import _compile_jinja_template

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
    return ours


def problem_in(error: Exception) -> str:
    """Return what is wrong with a template, for the end of a message: the line, if it is known, and the cause."""
    line = getattr(error, "lineno", None)
    said = (str(error).splitlines() or [""])[0][:300]
    plain = isinstance(error, TemplateError) and bool(said)
    cause = said if plain else f"{type(error).__name__}: {said}".removesuffix(": ")
    return f", line {line}: {cause}" if isinstance(line, int) else f": {cause}"


def _short_dates(now: Callable[[str], str]) -> Callable[[str], str]:
    def limited(format_: str) -> str:
        if len(format_) > _LONGEST_DATE:
            raise TemplateRuntimeError(f"a date's format of {len(format_)} characters")
        return now(format_)

    return limited
