"""Parse one cell of a user's row into the required form, or report its fault.

Every fault names the column and says what is allowed. Torch-free.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from pipeline.data.forms.paths import find, first_name

# CSV has no booleans, and pandas turns those with gaps into numbers.
_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
# What text files and raters write for a number that is not there.
_NO_NUMBER = frozenset({"nan", "null", "none", "n/a", "na"})


# Faults that keep a row from being read; the causes are those of ``config.Limits``.
RowCause = Literal[
    "malformed",
    "lone_response",
    "unlabelled",
    "unreadable_image",
    "missing_image",
    "image_url",
    "huge_image",
    "image_size",
]


class FaultError(Exception):
    """A fault in one row, and its cause."""

    def __init__(self, said: str, cause: RowCause = "malformed") -> None:
        super().__init__(said)
        self.cause: RowCause = cause


def absent(value: JsonValue) -> bool:
    """Return whether a cell is empty: null, the empty string that CSV uses for it, or the NaN that pandas does."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def required(values: dict[str, JsonValue], column: str) -> JsonValue:
    """Return the cell of ``column``. Raises ``FaultError`` if it is missing or null."""
    found = find(values, column)
    if found is None or (isinstance(found, float) and math.isnan(found)):
        if first_name(column) in values:
            raise FaultError(f"{column}: is null")
        raise FaultError(f"no column {column!r}; it has {', '.join(map(repr, values)) or 'none'}")
    return found


def plain_answer(values: dict[str, JsonValue], column: str) -> str | None:
    """Return a string or number as text; None if the cell is empty."""
    value = find(values, column)
    if absent(value):
        return None
    if isinstance(value, list | dict):
        raise FaultError(f"{column}: must be a string or number, not {kind(value)}")
    return str(value)


def optional_number(values: dict[str, JsonValue], column: str) -> float | None:
    """Return a finite number; None if the cell is empty."""
    value = find(values, column)
    # A text file writes NaN as a word.
    gone = absent(value) or (isinstance(value, str) and value.strip().casefold() in _NO_NUMBER)
    return None if gone else number(value, column)


def optional_probability(values: dict[str, JsonValue], column: str) -> float | None:
    """Return a number from 0 to 1; None if the cell is empty."""
    found = optional_number(values, column)
    if found is not None and not 0 <= found <= 1:
        raise FaultError(f"{column}: {found:g}; a probability is from 0 to 1")
    return found


def number(value: JsonValue, column: str) -> float:
    """Parse a finite number, or the text of one (CSV holds only text)."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise FaultError(f"{column}: must be a finite number, not {kind(value)}")
    return found


def truth(value: JsonValue, column: str, words: Mapping[str, bool]) -> bool:
    """Parse true or false, 1 or 0, the text of either, or one of ``words``."""
    said = word(value)
    found = words.get(said, _TRUTHS.get(said))
    if found is None or isinstance(value, list | dict):
        others = f", or one of {', '.join(map(repr, words))}" if words else " (labels.good and labels.bad name others)"
        raise FaultError(f"{column}: must be true or false, 1 or 0{others}, not {kind(value)}")
    return found


def word(value: JsonValue) -> str:
    """Return a value as a word to compare: without case, spaces around it, or the zero that pandas adds to 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def reward(value: JsonValue, column: str) -> float | None:
    """Return a response's reward: a finite number, true or false (1 and 0), the mean of a list of ratings, or None."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, list) and value:
        known = [number(item, column) for item in value if not absent(item)]
        return sum(known) / len(known) if known else None
    gone = absent(value) or (isinstance(value, str) and value.strip().casefold() in _NO_NUMBER)
    return None if gone else number(value, column)


def listed(value: JsonValue, column: str, what: str) -> list[JsonValue]:
    """Return a list. Raises ``FaultError`` that says what it should hold."""
    if not isinstance(value, list):
        written = isinstance(value, str) and value.lstrip().startswith("[")
        hint = "; parse: true reads lists that are written as text" if written else ""
        raise FaultError(f"{column}: must be a list of {what}, not {kind(value)}{hint}")
    return value


def kind(value: JsonValue) -> str:
    """Return a short description of a value for error messages."""
    return {"NoneType": "null", "dict": "an object", "list": "a list" if value else "an empty list"}.get(
        type(value).__name__, f"{type(value).__name__} {value!r}"[:60]
    )
