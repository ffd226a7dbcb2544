"""A table in a temporary file, so that memory does not grow with its rows. Torch-free."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import RunError

_MEMORY = 4 * 1024  # KiB of pages in memory; the rest is in a temporary file that SQLite deletes
_SETTINGS = (f"cache_size = -{_MEMORY}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE")
# Where SQLite puts temporary files: the first of these that is a folder it may write to.
_VARIABLES, _FOLDERS = ("SQLITE_TMPDIR", "TMPDIR"), ("/var/tmp", "/usr/tmp", "/tmp", ".")  # noqa: S108


class TemporaryTable:
    """A table, and others next to it, in SQLite's own temporary file, which is deleted with the object.

    Every method raises ``RunError`` that names the folder if the file cannot be written or read.
    """

    def __init__(self, *tables: str) -> None:
        """``tables``: the statements that make them."""
        try:
            self._rows = sqlite3.connect("", isolation_level=None)
            for statement in (*(f"PRAGMA {setting}" for setting in _SETTINGS), *tables, "BEGIN"):
                self._rows.execute(statement)
        except sqlite3.Error as error:
            raise _told(error) from error

    def write(self, statement: str, *values: str | int | None) -> bool:
        """Execute a statement; return whether it has changed a row."""
        try:
            return bool(self._rows.execute(statement, values).rowcount)
        except sqlite3.Error as error:
            raise _told(error) from error

    def read(self, query: str, *values: str | int | None) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query."""
        try:
            yield from self._rows.execute(query, values)
        except sqlite3.Error as error:
            raise _told(error) from error


def _told(error: sqlite3.Error) -> RunError:
    return RunError(
        f"{_folder()}: rows are kept there while the data is read, and it cannot hold them ({error}); make room, or "
        "name another folder with the environment variable SQLITE_TMPDIR"
    )


def _folder() -> str:
    named = [os.environ[variable] for variable in _VARIABLES if os.environ.get(variable)]
    usable = (place for place in (*named, *_FOLDERS) if Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK))
    return next(usable, "no temporary folder can be written to")
