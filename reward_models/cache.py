"""Labels by content, in one SQLite file that several runs may use at once. Torch-free.

SQLite's write-ahead log keeps what is written through a kill of any process, and lets runs read while one writes.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.types import UserError

if TYPE_CHECKING:
    from reward_models.questions import Missing

Kept = tuple[float | None, "Missing | None"]
# "pflb": tells the file from other programs' databases.
APPLICATION_ID = 0x70666C62
LAYOUT = 1
WAIT_SECONDS = 60.0
# Not the file is at fault, but the disk that it is on; the low byte of SQLite's codes is the kind.
_FAILING = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
AT_ONCE = 500


class LabelCache:
    """Values by key; a value of None has a cause. The file is made when something is first read or written."""

    def __init__(self, file: Path | None) -> None:
        """Without a file the cache is in memory and ends with the process."""
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def read(self, keys: Sequence[str]) -> dict[str, Kept]:
        """What is known of ``keys``. Raises ``UserError`` for a file that is no label cache or cannot be written."""
        found: dict[str, Kept] = {}
        with self._database() as database:
            for start in range(0, len(keys), AT_ONCE):
                part = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, value, missing FROM labels WHERE key IN ({marks})", part)  # noqa: S608 - question marks alone
                found.update({key: (value, cast("Missing | None", missing)) for key, value, missing in rows})
        return found

    def write(self, key: str, value: float | None, missing: "Missing | None" = None) -> None:
        """Keep a label; one that another run has written meanwhile stays as it is."""
        with self._database() as database:
            database.execute("INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", (key, value, missing))

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except sqlite3.DatabaseError as error:
            code = _FAILING.get(error.sqlite_errorcode & 0xFF) if hasattr(error, "sqlite_errorcode") else None
            if code is not None:
                raise OSError(code, os.strerror(code), str(self._file)) from error
            raise UserError(f"labelling.cache: {self._file}: {error}; move it away or name another file") from error
        except OSError as error:
            raise UserError(f"labelling.cache: {self._file}: {error}; move it away or name another file") from error

    def _open(self) -> sqlite3.Connection:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        # Autocommit: every statement is a transaction, so a label is kept as soon as it is there.
        database = sqlite3.connect(self._file or ":memory:", timeout=WAIT_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if tables == 0:
                database.execute("CREATE TABLE labels (key TEXT PRIMARY KEY, value REAL, missing TEXT) WITHOUT ROWID")
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {LAYOUT}")
            elif (application, layout) != (APPLICATION_ID, LAYOUT):
                raise sqlite3.DatabaseError("is a database, but no label cache of this version")
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database
