"""Cells inside of cells: ``a.b`` and ``a[0]``. Torch-free."""

import re

from pydantic import JsonValue

_ITEM = re.compile(r"(.+)\[(-?\d{1,9})\]", re.DOTALL)


def find(values: dict[str, JsonValue], column: str) -> JsonValue:
    """Return the cell of ``column``, or None.

    ``a.b`` is field b of a, or of each object in a list a; ``a[0]`` is the first item of a list a, ``a[-1]`` the last.
    """
    if column in values:
        return values[column]
    item = _ITEM.fullmatch(column)
    if item is not None:
        inner, place = find(values, item[1]), int(item[2])
        return inner[place] if isinstance(inner, list) and -len(inner) <= place < len(inner) else None
    if "." not in column:
        return None
    outer, _, field = column.rpartition(".")
    match find(values, outer):
        case dict() as held:
            return held.get(field)
        case list() as listed:
            return [each.get(field) if isinstance(each, dict) else None for each in listed]
    return None


def first_name(column: str) -> str:
    """Return the column that a path begins with: ``a`` of ``a[0].b``."""
    return re.split(r"[.\[]", column, maxsplit=1)[0]
