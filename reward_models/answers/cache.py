"""Label cache keyed by content, in one SQLite file that several runs may use at once. Torch-free.

SQLite's write-ahead log keeps written labels when any process is killed, and lets runs read while one writes. SQLite's
pages have no checksums, so each label has its own: a label that changed on disk is treated as missing.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.errors import UserError
from pipeline.storage.mounts import is_shared
from pipeline.types.counts import number_of

if TYPE_CHECKING:
    from reward_models.answers.missing import Missing

Kept = tuple[float | None, "Missing | None"]
# "pflb": distinguishes the file from other programs' databases.
APPLICATION_ID = 0x70666C62
LAYOUT = 2
WAIT_SECONDS = 60.0
# Faults of the disk, not of the file; the low byte of SQLite's codes is the kind.
_FAILING = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
_AT_ONCE = 500
_TABLE = "CREATE TABLE labels (key TEXT PRIMARY KEY, value REAL, missing TEXT, seal TEXT) WITHOUT ROWID"
# A label that another run wrote in the meantime stays, unless it is damaged.
_WRITE = """INSERT INTO labels VALUES (?1, ?2, ?3, seal_of(?1, ?2, ?3)) ON CONFLICT (key) DO UPDATE
SET value = excluded.value, missing = excluded.missing, seal = excluded.seal
WHERE labels.seal IS NOT seal_of(labels.key, labels.value, labels.missing)"""

logger = logging.getLogger(__name__)


class LabelCache:
    """Values by key; a value of None has a cause. The file is created at the first read or write."""

    def __init__(self, file: Path | None) -> None:
        """Without a file, the cache is in memory and ends with the process."""
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def read(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return the known labels of ``keys``. Damaged labels are left out, with a warning.

        Raises ``UserError`` for a file that is damaged, is not a label cache or cannot be written.
        """
        found: dict[str, Kept] = {}
        damaged = 0
        with self._database() as database:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, value, missing, seal FROM labels WHERE key IN ({marks})", part)  # noqa: S608 - question marks alone
                for key, value, missing, seal in rows:
                    if seal == _seal_of(key, value, missing):
                        found[key] = (value, cast("Missing | None", missing))
                    else:
                        damaged += 1
        if damaged:
            logger.warning("%s: %s changed on disk, asked for again", self._file, number_of(damaged, "label"))
        return found

    def write(self, key: str, value: float | None, missing: "Missing | None" = None) -> None:
        """Write a label; one that another run wrote in the meantime stays unchanged."""
        with self._database() as database:
            database.execute(_WRITE, (key, None if value is None else float(value), missing))

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
            if not self._file.exists():
                # SQLite would make it 0644 at most, which several users could not share.
                self._file.touch()
        # Autocommit: every statement is a transaction, so each label is kept at once.
        database = sqlite3.connect(self._file or ":memory:", timeout=WAIT_SECONDS, isolation_level=None)
        # Damaged content may not be valid text.
        database.text_factory = lambda text: text.decode(errors="replace")
        database.create_function("seal_of", 3, _seal_of, deterministic=True)
        try:
            # The log's index is memory that processes share, which those of several machines cannot.
            shared = self._file is not None and is_shared(self._file)
            _keep_journal(database, "DELETE" if shared else "WAL")
            database.execute(f"PRAGMA synchronous = {'FULL' if shared else 'NORMAL'}")
            database.execute("BEGIN IMMEDIATE")
            (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if tables == 0:
                database.execute(_TABLE)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {LAYOUT}")
            elif (application, layout) != (APPLICATION_ID, LAYOUT):
                raise sqlite3.DatabaseError("is a database, but not a label cache of this version")
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database


def _seal_of(key: object, value: object, missing: object) -> str:
    """Return the checksum of one label."""
    return sha256(repr((key, value, missing)).encode("utf-8", "replace")).hexdigest()[:16]


def _keep_journal(database: sqlite3.Connection, mode: str) -> None:
    """Turn on the write-ahead log, or a journal to roll back; only one process at a time can change that."""
    given_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            database.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            # Here SQLite does not apply its busy timeout.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > given_up:
                raise
        time.sleep(0.01)
