"""Make text from a model or a data set safe to show: people can read it, and it triggers nothing.

HTML pages put ``visible`` text through the template's own escaping; the terminal prints ``visible`` or ``one_line``
text without rich's markup (``markup=False``, or a ``rich.text.Text`` in tables); Markdown, such as Prefect's
artefacts, uses ``markdown`` inside lines and table cells and ``markdown_block`` between them.

The second half keeps keys and passwords out of logs, errors and pages, whoever writes them and in whatever pieces. A
secret is the value of an environment variable whose name says so, or that a config names for a key. Torch-free.
"""

import os
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


HIDDEN = "[hidden]"
# Words of names: api and Key of apiKey, SAS and Token of SASToken.
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset(("key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials"))
# Too common inside names of variables: these say so only at the end of the name of a query's value.
_SECRET_ENDS = _SECRET_WORDS | {"sig", "signature", "code", "auth", "accesskey", "accesstoken", "authtoken"}
SECRET_TEXT = re.compile(
    r"\b(?:sk|hf|gh[pousr]|xox[abprs]|pnu|pnb)[-_][A-Za-z0-9_-]{12,}|(?<=Bearer )[^\s'\",;]{8,}"
    r"|(?<=Basic )[A-Za-z0-9+/=]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# Names the variables that hold keys by the configs read so far, separated by commas; children inherit it.
KEY_VARIABLES = "PREFLOOP_KEY_VARIABLES"
# Shorter values would match ordinary words.
SHORTEST_SECRET = 8
SHORTEST_KEY = 4
# A line longer than this is written in pieces; its last part may be the beginning of a secret and waits.
LONGEST_LINE = 1 << 20
HELD_BACK = 1 << 16


def name_words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: ``("api", "key")`` of ``API_KEY``, ``api-key1`` and ``apiKey``."""
    return tuple(word.lower() for word in _NAME_WORD.findall(name))


def is_secret_variable(name: str) -> bool:
    """Return whether the name of an environment variable says that it holds a key or password."""
    words = name_words(name)
    return not _SECRET_WORDS.isdisjoint(words) or words[-2:] == ("auth", "string")


def is_secret_parameter(name: str) -> bool:
    """Return whether the name of a query's value says that it is a key: ``api-key``, ``accessToken``, ``sig``."""
    return bool(words := name_words(name)) and words[-1] in _SECRET_ENDS


def secrets_of(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the secrets of an environment, longest first; default: this process's.

    Of a value with several lines, such as a private key, each line is one, since logs are read line by line.
    """
    values = os.environ if environment is None else environment
    keys = frozenset(values.get(KEY_VARIABLES, "").split(","))
    found: set[str] = set()
    for name, value in values.items():
        shortest = SHORTEST_KEY if name in keys else SHORTEST_SECRET
        # The list of names is no secret: messages tell which variable to set.
        if name != KEY_VARIABLES and (name in keys or is_secret_variable(name)):
            parts = (part.strip() for part in (value, *value.splitlines()))
            found |= {part for part in parts if len(part) >= shortest}
    return tuple(sorted(found, key=len, reverse=True))


def name_keys(config: "JsonValue") -> None:
    """Hide the keys whose variables ``config`` names, in this process and in those that it starts."""
    known = {name for name in os.environ.get(KEY_VARIABLES, "").split(",") if name}
    os.environ[KEY_VARIABLES] = ",".join(sorted(known | key_variables(config)))


def key_variables(plain: "JsonValue") -> frozenset[str]:
    """Return the names of the variables that hold the keys of a config, or part of one, as JSON."""
    match plain:
        case dict():
            named = {str(value) for name, value in plain.items() if name == "api_key_env" and value is not None}
            held = plain.get("secrets")
            named |= held.keys() if isinstance(held, dict) else set()
            return frozenset(named).union(*map(key_variables, plain.values()))
        case list():
            return frozenset[str]().union(*map(key_variables, plain))
        case _:
            return frozenset()


def hide_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """Return ``text`` without ``secrets`` and without anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return SECRET_TEXT.sub(HIDDEN, text)


def redacted(error: object, *secrets: str | None) -> str:
    """Return ``error`` as text, without ``secrets`` and the secrets in this process's environment."""
    given = tuple(secret for secret in secrets if secret)
    return hide_secrets(str(error), (*given, *secrets_of()))


@contextmanager
def keyless() -> Iterator[None]:
    """Take secrets out of the errors that leave the block, and out of their causes: someone shows them elsewhere."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:
            found.args = tuple(redacted(part) if isinstance(part, str) else part for part in found.args)
            found = found.__cause__ or found.__context__
        raise


class KeylessLines:
    """Bytes that come in any pieces, given back line by line without secrets; all other bytes stay as they are."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        # One character a byte, so that places in text are places in bytes.
        plain = (re.escape(secret.encode(errors="surrogateescape").decode("latin-1")) for secret in secrets)
        self._spans = re.compile("|".join([*plain, SECRET_TEXT.pattern]))
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the lines that ``piece`` completes, with their ends."""
        held = self._rest + piece
        # A progress bar ends its lines with a carriage return.
        end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
        if len(held) - end > LONGEST_LINE:
            end = self._cut(held)
        whole, self._rest = held[:end], held[end:]
        return self._without(whole)

    def end(self) -> bytes:
        """Return what is left after the last line's end."""
        left, self._rest = self._rest, b""
        return self._without(left)

    def _cut(self, held: bytes) -> int:
        """Return a place near the end of ``held`` that is in no secret."""
        place = len(held) - HELD_BACK
        for match in self._spans.finditer(held.decode("latin-1")):
            if match.start() < place < match.end():
                return match.start() or match.end()
        return place

    def _without(self, whole: bytes) -> bytes:
        return hide_secrets(whole.decode(errors="surrogateescape"), self._secrets).encode(errors="surrogateescape")
