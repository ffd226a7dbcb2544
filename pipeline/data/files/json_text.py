"""Rows of JSON files: one list, a list under a name, single objects, or one object a line. Torch-free.

ijson does not fit: it refuses NaN and integers beyond 64 bits, turns lone surrogates into question marks, and its
memory grows with the square of the depth (1 GiB for a file of 40 kB).
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from pipeline.config.data.user_data import EVERY_SPLIT
from pipeline.data.files.bounds import CHUNK, LONGEST_ROW, Broken, NumberedRows, OpenedFile
from pipeline.data.files.folders import SPLITS
from pipeline.errors import UserError

_NO_SPACE = re.compile(r"[^ \t\r\n]")
# Names under which files hold their list of rows.
_LISTS = frozenset({"data", "rows", "examples", "instances", "items", "records", *SPLITS})


def read_lines(stream: OpenedFile) -> NumberedRows:
    """Yield one value a line; empty lines count towards row numbers."""
    for number, line in enumerate(_lines(stream), 1):
        if isinstance(line, Broken):
            yield number, line
            continue
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, Broken(f"not UTF-8 (byte {error.start + 1} of the row)")
        except (ValueError, RecursionError) as error:
            yield number, Broken(f"not JSON: {error}")


def holds_lines(stream: OpenedFile) -> bool:
    """Return whether the first line is a whole object and more follows: JSON lines, whatever the file's name."""
    first, second = stream.readline(CHUNK), stream.readline(CHUNK)
    while second and not second.strip():
        second = stream.readline(CHUNK)
    try:
        return bool(second) and isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _lines(stream: OpenedFile) -> Iterator[bytes | Broken]:
    while line := stream.readline(LONGEST_ROW):
        if len(line) < LONGEST_ROW or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield Broken(f"a line of more than {LONGEST_ROW >> 20} MiB")


def require_no_list(file: Path, split: str | None) -> None:
    """Raise ``UserError`` if ``split`` names a list of a file that holds rows without any name."""
    if split not in (None, EVERY_SPLIT):
        raise UserError(f"{file}: no list {split!r}; its rows are in no list with a name, so it has no splits")


def read_json(file: Path, stream: IO[str], split: str | None, columns: Collection[str] = ()) -> NumberedRows:
    """Yield the items of one list, each as soon as it is complete; without a list, the objects of the file.

    ``split``: the name of the list, if the file holds several (``{"train": [...], "test": [...]}``). ``columns``: lists
    under these names are cells of a row, as are lists of anything but objects.

    Raises:
        UserError: not JSON, or several lists and none named, or one named that is not there.
    """
    text, number = _JsonText(stream), 0
    try:
        begin = text.peek()
        if begin not in ("[", "{"):
            raise UserError(f"{file}: must be a list of objects, or objects")
        if begin == "[":
            require_no_list(file, split)
        names = _LISTS.difference(columns)
        for item in _items(file, text) if begin == "[" else _objects(file, text, split, names):
            number += 1
            yield number, item
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: item {number + 1}: {error}") from error


def _items(file: Path, text: "_JsonText") -> Iterator[object]:
    number = 0
    for item in _list(file, text):
        number += 1
        yield item
    if text.peek():
        raise UserError(f"{file}: not JSON: text after the list's end, after item {number}")


def _list(file: Path, text: "_JsonText") -> Iterator[object]:
    """Yield the items of the list that begins here."""
    number = 0
    text.skip()
    while text.peek() != "]":
        if number:
            if text.peek() != ",":
                raise UserError(f"{file}: not JSON: neither a comma nor the list's end after item {number}")
            text.skip()
        number += 1
        yield text.item()
    text.skip()


def _objects(file: Path, text: "_JsonText", split: str | None, names: Collection[str]) -> Iterator[object]:
    while begin := text.peek():
        if begin != "{":
            raise UserError(f"{file}: not JSON: {begin!r} after an object")
        yield from _object(file, text, split, names)


def _object(file: Path, text: "_JsonText", split: str | None, names: Collection[str]) -> Iterator[object]:
    """Yield the items of the object's lists of rows under ``names``, or else the object itself."""
    fields: dict[str, object] = {}
    lists: list[str] = []
    filled = False
    text.skip()
    while text.peek() != "}":
        if fields or lists:
            text.expect(",")
        name = text.item()
        text.expect(":")
        if not isinstance(name, str):
            raise ValueError("the name of a field must be a string")
        if name not in names or not text.begins_rows():
            fields[name] = text.item()
            continue
        lists.append(name)
        wanted = split in (None, EVERY_SPLIT, name)
        for item in _list(file, text):
            filled = True
            if wanted:
                yield item
    text.skip()
    if not lists:
        require_no_list(file, split)
    if not lists or (len(lists) == 1 and not filled and fields and split in (None, EVERY_SPLIT)):
        # An empty list next to other fields is a cell, too.
        yield {**fields, **{name: [] for name in lists}}
    elif split is None and len(lists) > 1:
        raise UserError(
            f"{file}: holds several lists of rows: {', '.join(lists)}; name one with split (or {EVERY_SPLIT})"
        )
    elif split not in (None, EVERY_SPLIT, *lists):
        raise UserError(f"{file}: no list {split!r}; it has {', '.join(lists)}")


class _JsonText:
    """JSON text, read only as far as needed."""

    def __init__(self, stream: IO[str]) -> None:
        self._at = 0
        self._stream = stream
        self._text = ""
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is not a space; empty at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            if found is not None:
                self._at = found.start()
                return found.group()
            if self._ended:
                return ""
            self._at = len(self._text)
            self._more()

    def begins_rows(self) -> bool:
        """Return whether the next value is a list of objects, by its first item, or an empty one."""
        if self.peek() != "[":
            return False
        while (found := _NO_SPACE.search(self._text, self._at + 1)) is None and not self._ended:
            self._more()
        # A first item that is null is a row with a fault.
        return found is None or found.group() in "{]n"

    def skip(self) -> None:
        """Pass over the character that ``peek`` returned."""
        self._at += 1

    def expect(self, character: str) -> None:
        """Pass over ``character``. Raises ``ValueError`` if another one is there."""
        found = self.peek()
        if found != character:
            raise ValueError(f"expected {character!r}, not {found or 'the end'!r}")
        self.skip()

    def item(self) -> object:
        """Return the value that begins here."""
        self.peek()
        while True:
            try:
                item, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                # A number may continue beyond what is read so far.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return item
            self._more()

    def _more(self) -> None:
        # Doubling the text: an item of n chunks is tried log n times.
        waiting = self._text[self._at :]
        if len(waiting) > LONGEST_ROW:
            raise ValueError(f"longer than {LONGEST_ROW >> 20} Mi characters")
        chunk = self._stream.read(max(CHUNK, len(waiting)))
        self._text, self._at, self._ended = waiting + chunk, 0, not chunk
