"""Make text from a model or a data set safe to show: people can read it, and it triggers nothing.

HTML pages put ``visible`` text through the template's own escaping; the terminal prints ``visible`` or ``one_line``
text without rich's markup (``markup=False``, or a ``rich.text.Text`` in tables); Markdown, such as Prefect's
artefacts, uses ``markdown`` inside lines and table cells and ``markdown_block`` between them. Torch-free.
"""

import io
import os
import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

REPLACED = "\N{REPLACEMENT CHARACTER}"
# Joiners shape letters and emoji. All other characters in these categories control terminals, reverse the text's
# direction, end strings or cannot be encoded: controls, formats, surrogates, private and unassigned characters.
_HARMLESS = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
_ACTIVE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
# Text that Markdown renderers turn into links, even when every character is escaped.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def visible(text: str, limit: int | None = None) -> str:
    """Return ``text`` with active characters replaced, cut to ``limit`` characters; line breaks stay."""
    text = text.replace("\r\n", "\n")
    cut = limit is not None and len(text) > limit
    text = text[:limit] if cut else text
    if not text.isprintable():
        text = "".join(c if c in _HARMLESS or unicodedata.category(c) not in _ACTIVE else REPLACED for c in text)
    return f"{text} …" if cut else text


def one_line(text: str, limit: int | None = None) -> str:
    """Return ``visible`` text on one line, with line breaks shown as ⏎."""
    return "⏎ ".join(visible(text, limit).replace("\t", " ").strip().split("\n"))


def markdown(text: str, limit: int | None = None) -> str:
    """Return ``one_line`` text for Markdown: it yields no link, image, table, emphasis, heading, code or HTML.

    Punctuation is escaped (CommonMark 2.4), and invisible joiners break text that would be linked without markup.
    """
    broken = _LINKED.sub("\N{WORD JOINER}", one_line(text, limit))
    return _PUNCTUATION.sub(r"\\\g<0>", broken)


def markdown_block(text: str, limit: int | None = None) -> str:
    """Return ``visible`` text as a fenced Markdown block with a fence longer than any in it; put it on a new line."""
    shown = visible(text, limit)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{shown}\n{fence}"


SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.I)


SECRET_TEXT = re.compile(
    r"\b(?:sk|hf|gh[pousr]|xox[abprs]|pnu|pnb)[-_][A-Za-z0-9_-]{12,}|(?<=Bearer )[^\s'\",;]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


HIDDEN = "[hidden]"


# Shorter values would match ordinary words.
SHORTEST_SECRET = 8


def secrets_of(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the values of variables with secret-looking names, longest first."""
    values = os.environ if environment is None else environment
    found = {value.strip() for name, value in values.items() if SECRET_NAME.search(name)}
    return tuple(sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True))


def hide_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """Return ``text`` without ``secrets`` and without anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return SECRET_TEXT.sub(HIDDEN, text)


def redacted(error: object, *secrets: str | None) -> str:
    """Return ``error`` as text, without ``secrets`` and the secrets in this process's environment."""
    given = tuple(secret for secret in secrets if secret)
    return hide_secrets(str(error), (*given, *secrets_of()))


def key_variables(plain: "JsonValue") -> frozenset[str]:
    """Return the names of the variables that hold the keys of a config, or part of one, as JSON."""
    match plain:
        case dict():
            named = {str(value) for name, value in plain.items() if name == "api_key_env" and value is not None}
            return frozenset(named).union(*map(key_variables, plain.values()))
        case list():
            return frozenset[str]().union(*map(key_variables, plain))
        case _:
            return frozenset()


class _Redacted(io.TextIOWrapper):
    """A text stream that writes no secret."""

    secrets: tuple[str, ...] = ()

    def write(self, text: str) -> int:
        super().write(hide_secrets(text, self.secrets))
        return len(text)


def redact_output(variables: Iterable[str]) -> None:
    """Keep the values of ``variables``, and of variables with secret-looking names, out of this process's output."""
    given = (os.environ.get(name, "").strip() for name in variables)
    secrets = (*(value for value in given if value), *secrets_of())
    for name in ("stdout", "stderr"):
        stream = _Redacted(getattr(sys, name).buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
        stream.secrets = secrets
        setattr(sys, name, stream)
