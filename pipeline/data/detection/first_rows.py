"""The first rows of the user's data as columns, and what each column holds. Torch-free."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import JsonValue

from pipeline.data.forms.cells import absent, word
from pipeline.data.forms.paths import find
from pipeline.data.forms.spelled import is_spelled

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
# Of texts that say that there is no number.
_NO_NUMBER = frozenset({"n/a", "na", "none", "null", "nan"})
Cell = Literal["text", "number", "turns", "texts", "numbers", "objects", "object", "lists"]


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    return _NUMBER.fullmatch(text) is not None


class FirstRows:
    """Rows by column. Fields of objects are columns too, named as ``Columns`` names them: ``a.b``."""

    def __init__(self, rows: Sequence[dict[str, JsonValue]]) -> None:
        self.rows = rows
        self.names = tuple(dict.fromkeys(name for row in rows for name in _names(row)))
        self._values: dict[str, list[JsonValue]] = {}

    def values(self, name: str) -> list[JsonValue]:
        """Return the cells of a column that hold something."""
        if name not in self._values:
            found = (find(row, name) for row in self.rows)
            self._values[name] = [value for value in found if not absent(value)]
        return self._values[name]

    def holds(self, name: str, *cells: Cell) -> bool:
        """Return whether a column has something, and nothing but these kinds of cells."""
        values = self.values(name)
        return bool(values) and all(cell_of(value) in cells for value in values)

    def is_answer(self, name: str) -> bool:
        """Return whether a column can hold responses: texts or turns."""
        return self.holds(name, "text", "turns")

    def is_numeric(self, name: str) -> bool:
        """Return whether a column, or the lists in it, hold numbers, their texts, or words for none."""
        found = [item for value in self.values(name) for item in (value if isinstance(value, list) else [value])]
        known = [item for item in found if not (item is None or word(item) in _NO_NUMBER)]
        return bool(known) and all(not isinstance(item, bool) and is_number(word(item)) for item in known)

    def written_out(self, name: str) -> bool:
        """Return whether most texts of a column are lists or conversations written out."""
        texts = [value for value in self.values(name) if isinstance(value, str)]
        spelled = sum(is_spelled(text) or text.lstrip().startswith(('["', "['", "[null")) for text in texts)
        return 2 * spelled > len(texts)


def cell_of(value: JsonValue) -> Cell:
    """Return what a cell holds."""
    match value:
        case str():
            return "text"
        case dict():
            return "turns" if _is_turn(value) else "object"
        case list():
            held = [item for item in value if item is not None]
            if held and all(_is_turn(item) for item in held):
                return "turns"
            if held and all(isinstance(item, str) for item in held):
                return "texts"
            if held and all(isinstance(item, dict) for item in held):
                return "objects"
            if held and all(_is_number(item) or _is_ratings(item) for item in held):
                return "numbers"
            return "lists"
    return "number"


def _is_turn(item: JsonValue) -> bool:
    return isinstance(item, dict) and ({"role", "from"} & {*item}) != set() and "rank" not in item


def _is_number(item: JsonValue) -> bool:
    return isinstance(item, int | float)


def _is_ratings(item: JsonValue) -> bool:
    return isinstance(item, list) and all(inner is None or _is_number(inner) for inner in item)


def _names(row: dict[str, JsonValue]) -> Iterator[str]:
    for name, value in row.items():
        yield name
        inner = value
        if isinstance(value, list) and cell_of(value) == "objects":
            inner = next((item for item in value if isinstance(item, dict)), None)
        if isinstance(inner, dict) and not _is_turn(inner):
            yield from (f"{name}.{field}" for field in inner)
