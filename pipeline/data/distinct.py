"""Distinct prompts and keys of a data set, kept on disk: memory does not grow with its size. Torch-free."""

import json
import sqlite3
from collections.abc import Iterator

from pipeline.types import Message, Prompt

_TABLE = """
CREATE TABLE prompts (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, messages TEXT, source TEXT, answer TEXT, reference TEXT
)
"""
_ADD = """
INSERT INTO prompts (id, messages, source, answer, reference) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET reference = coalesce(reference, excluded.reference)
"""
_MEMORY = 4 * 1024  # KiB of pages in memory; the rest is in a temporary file that SQLite deletes


class DistinctPrompts:
    """Prompts with distinct content, in order of arrival.

    A prompt keeps the first ``reference`` among its rows and the ``answer`` of its first row.
    """

    def __init__(self) -> None:
        self._rows = _open(_TABLE)

    def add(self, prompt: Prompt) -> None:
        """Add a row's prompt."""
        messages = json.dumps([m.parts for m in prompt.messages], ensure_ascii=False)
        self._rows.execute(_ADD, (prompt.id, messages, prompt.source, prompt.answer, prompt.reference))

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT count(*) FROM prompts").fetchone()[0])

    def __iter__(self) -> Iterator[Prompt]:
        for messages, source, answer, reference in self._rows.execute(
            "SELECT messages, source, answer, reference FROM prompts ORDER BY number"
        ):
            turns = tuple(Message(*parts) for parts in json.loads(messages))
            yield Prompt(turns, source, answer, reference)


class Firsts:
    """The first row of each key."""

    def __init__(self) -> None:
        self._rows = _open("CREATE TABLE firsts (key TEXT PRIMARY KEY, place TEXT, value TEXT) WITHOUT ROWID")

    def add(self, key: str, place: str, value: str | None = None) -> tuple[str, str | None] | None:
        """Add a row; return (place, value) of the first row with this ``key``, or None if this is the first."""
        added = self._rows.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?, ?)", (key, place, value))
        if added.rowcount:
            return None
        first: tuple[str, str | None] = self._rows.execute(
            "SELECT place, value FROM firsts WHERE key = ?", (key,)
        ).fetchone()
        return first


def _open(table: str) -> sqlite3.Connection:
    """Open a table in SQLite's own temporary file, which is deleted when the connection closes."""
    rows = sqlite3.connect("", isolation_level=None)
    for setting in (f"cache_size = -{_MEMORY}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
        rows.execute(f"PRAGMA {setting}")
    rows.execute(table)
    rows.execute("BEGIN")
    return rows
