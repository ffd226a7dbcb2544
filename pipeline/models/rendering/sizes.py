"""How large a text will be, before a method of texts, an operator or a format makes it. Torch-free.

Each check raises ``TemplateRuntimeError`` if the result, or the work, would be too large. Only a format counts as a
format and only a width as a width: data may hold any number and any percent sign.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from pipeline.models.rendering.meter import ITEM, Meter, require_bits, require_length

_MOST_WORK = 1 << 30  # comparisons of characters in one call
_MOST_FIELDS = 1 << 16
_SPEC = re.compile(r"%(?:\([^)]*\))?[-+ #0]*([0-9]+|\*)?(?:\.([0-9]+|\*))?")
_NUMBER = re.compile("[0-9]+")
_ENCODINGS = frozenset(("utf-8", "utf8", "ascii", "latin-1", "utf-16", "utf-32"))
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = _LINE_ENDS + "\t \x1f\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def width(value: object) -> int:
    """Characters that a width asks for: a number, or a text that is put in."""
    if isinstance(value, str | bytes):
        return len(value)
    return max(0, value) if isinstance(value, int) else 0


def check_method(meter: Meter, text: str | bytes, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check ``text.name(*args, **kwargs)``."""
    given = [*args, *kwargs.values()]
    first = given[0] if given else None
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            require_length(width(first))
        case "expandtabs":
            tabs = text.count("\t" if isinstance(text, str) else b"\t")  # type: ignore[arg-type]  # of its own kind
            require_length(len(text) + tabs * width(8 if first is None else first))
        case "join":
            weight = meter.weight(first)
            require_length(weight + len(text) * (len(first) if isinstance(first, list | tuple | str | dict) else 0))
        case "replace" if len(given) >= 2:
            require_length(replaced(text, *given[:3]))
        case "translate" if isinstance(first, dict):
            require_length(len(text) * max((meter.weight(value) for value in first.values()), default=1))
        case "encode" | "decode" if first is not None and str(first).lower() not in _ENCODINGS:
            raise TemplateRuntimeError(f"{name}s as {str(first)[:20]!r}; allowed are {', '.join(sorted(_ENCODINGS))}")
        case "split" | "rsplit" | "splitlines":
            require_length(len(text) + ITEM * pieces(text, name, first))
        case "striptags":  # a method of escaped texts that takes quadratic time
            check_work(len(text), len(text))
    if name in ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"):
        check_work(len(text), first)


def check_work(size: int, other: object) -> None:
    """Check a search that may compare each of ``size`` characters with each of another text's."""
    if size * width(other) > _MOST_WORK:
        raise TemplateRuntimeError(f"searches {size} characters for {width(other)} others")


def replaced(text: str | bytes, old: object, new: object, count: object = None) -> int:
    """Return the length of ``text`` with ``old`` replaced by ``new``, ``count`` times at most (None: everywhere)."""
    if not (isinstance(text, str) and isinstance(old, str)) and not (
        isinstance(text, bytes) and isinstance(old, bytes)
    ):
        return len(text)  # which fails in its own words
    found = text.count(old)  # type: ignore[arg-type]  # both are texts, or both bytes
    times = min(found, count) if isinstance(count, int) and count >= 0 else found
    return len(text) + times * max(0, width(new) - len(old))


def check_percent(meter: Meter, format_: str | bytes, values: object) -> None:
    """Check ``format_ % values``."""
    pattern = format_.decode("latin-1") if isinstance(format_, bytes) else format_
    total = len(pattern) + meter.weight(values)
    if "%" not in pattern:
        return require_length(total)
    numbers = [value for value in values if isinstance(value, int)] if isinstance(values, tuple) else []
    star = max((abs(number) for number in numbers), default=0)
    specs = _SPEC.findall(pattern)
    if len(specs) > _MOST_FIELDS:
        raise TemplateRuntimeError(f"a format with {len(specs)} fields")
    for wide in (part for spec in specs for part in spec if part):
        _require_width(star if wide == "*" else _number(wide))
        total += star if wide == "*" else _number(wide)
    if isinstance(values, Mapping):  # which a format may name again and again
        total += len(specs) * max(map(meter.weight, values.values()), default=0)
    return require_length(total)


def check_product(left: Any, right: Any) -> None:
    """Check ``left * right``."""
    if isinstance(left, int) and isinstance(right, int):
        return require_bits(left.bit_length() + right.bit_length())
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
            each = 1 if isinstance(many, str | bytes) else ITEM
            require_length(len(many) * times * each)
    return None


def check_sum(left: Any, right: Any) -> None:
    """Check ``left + right``."""
    for kinds, each in (((str, bytes), 1), ((list, tuple), ITEM)):
        if isinstance(left, kinds) and isinstance(right, kinds):
            require_length(each * (len(left) + len(right)))


def _require_width(wide: int) -> None:
    if wide > 1_000_000:
        raise TemplateRuntimeError("formats with a width of millions")


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 20 else 10**20


def pieces(text: str | bytes, name: str, separator: object = None) -> int:
    """Return the most pieces that the method ``name`` (split, rsplit, splitlines) of ``text`` can make."""
    if name != "splitlines" and separator is not None:
        return 1 + (text.count(separator) if type(separator) is type(text) else 0)  # type: ignore[arg-type]
    if isinstance(text, bytes):
        return len(text)
    return 1 + sum(map(text.count, _LINE_ENDS if name == "splitlines" else _SPACES))


class _Measured(SandboxedFormatter):
    """``str.format`` that adds up what its fields take."""

    def __init__(self, environment: Any, **options: Any) -> None:
        super().__init__(environment, **options)
        # Access to a method knows no rendering: the call counts its time, this one its sizes.
        self._meter, self._total, self._fields = Meter(), 0, 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.weight(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        wide = sum(_number(digits) for digits in _NUMBER.findall(format_spec))
        _require_width(wide)
        self._fields += 1
        self._total += self._meter.weight(value) + wide
        if self._fields > _MOST_FIELDS:
            raise TemplateRuntimeError(f"a format with more than {_MOST_FIELDS} fields")
        require_length(self._total)
        return super().format_field(value, format_spec)


class _MeasuredEscapes(_Measured, SandboxedEscapeFormatter):
    """The same for ``Markup``, which escapes what is put in."""


def format_method(environment: Any, text: str, named: bool) -> Callable[..., str]:
    """Return ``text.format``, or ``text.format_map`` if ``named``, with the sandbox's and our limits."""

    def formatted(*args: Any, **kwargs: Any) -> str:
        if named:
            (kwargs,), args = args, ()
        escape = {"escape": text.escape} if isinstance(text, Markup) else {}
        formatter = _MeasuredEscapes(environment, **escape) if escape else _Measured(environment)
        return type(text)(formatter.vformat(text, args, kwargs))

    return formatted
