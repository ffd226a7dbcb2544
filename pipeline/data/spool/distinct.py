"""Distinct prompts and keys of a data set, kept on disk: memory does not grow with its size. Torch-free."""

import json
from collections.abc import Iterable, Iterator

from pipeline.data.forms.plain import plain_start
from pipeline.data.spool.temporary_table import TemporaryTable
from pipeline.types import Message, Prompt

_TABLE = """
CREATE TABLE prompts (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, messages TEXT, source TEXT, answer TEXT, reference TEXT, rubric TEXT
)
"""
_ADD = """
INSERT INTO prompts (id, messages, source, answer, reference, rubric) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET reference = coalesce(reference, excluded.reference)
"""


class DistinctPrompts:
    """Prompts with distinct content, in order of arrival, and which of them belong together.

    A prompt keeps the first ``reference`` among its rows, and ``answer`` and ``rubric`` of its first row. Together are
    prompts of one ``origin``, if ``by_origin``; and guessed prompts, one of which begins with the other, word by word.
    """

    def __init__(self, by_origin: bool = False) -> None:
        self._by_origin = by_origin
        self._rows = TemporaryTable(
            _TABLE, "CREATE TABLE guesses (start TEXT, id TEXT)", "CREATE TABLE links (one TEXT, other TEXT)"
        )

    def add(self, prompt: Prompt) -> None:
        """Add a row's prompt."""
        messages = json.dumps([m.whole for m in prompt.messages], ensure_ascii=False)
        self._rows.write(_ADD, prompt.id, messages, prompt.source, prompt.answer, prompt.reference, prompt.rubric)
        if self._by_origin and prompt.origin:
            self._rows.write("INSERT INTO links VALUES (?, ?)", f"origin {prompt.origin}", prompt.id)
        if prompt.guessed:
            self._rows.write("INSERT INTO guesses VALUES (?, ?)", plain_start(prompt), prompt.id)

    def together(self) -> dict[str, str]:
        """Return the group of each prompt that belongs to others, by id. Memory grows with the number of those."""
        groups = _Groups()
        for one, other in self._rows.read("SELECT one, other FROM links"):
            groups.join(one, other)
        for one, other in _starts(self._rows.read("SELECT DISTINCT start, id FROM guesses ORDER BY start, id")):
            groups.join(one, other)
        return groups.named()

    def guesses(self) -> tuple[int, int]:
        """Return how many prompts are guessed, and how many of them begin with another guessed one."""
        rows = self._rows.read("SELECT DISTINCT start, id FROM guesses ORDER BY start, id")
        return self._count("SELECT count(DISTINCT id) FROM guesses"), sum(1 for _ in _starts(rows))

    def __len__(self) -> int:
        return self._count("SELECT count(*) FROM prompts")

    def __iter__(self) -> Iterator[Prompt]:
        for messages, source, answer, reference, rubric in self._rows.read(
            "SELECT messages, source, answer, reference, rubric FROM prompts ORDER BY number"
        ):
            turns = tuple(Message(*parts) for parts in json.loads(messages))
            yield Prompt(turns, source, answer, reference, rubric=rubric)

    def _count(self, query: str) -> int:
        return int(next(self._rows.read(query))[0])


class _Groups:
    """Sets of keys that are joined pair by pair."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        """Put two keys into one group."""
        roots = sorted((self._root(one), self._root(other)))
        self._parent[roots[1]] = roots[0]

    def named(self) -> dict[str, str]:
        """Return the smallest key of each key's group."""
        return {key: self._root(key) for key in self._parent}

    def _root(self, key: str) -> str:
        parent = self._parent.setdefault(key, key)
        while parent != self._parent[parent]:
            parent = self._parent[parent] = self._parent[self._parent[parent]]
        self._parent[key] = parent
        return parent


def _starts(sorted_: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (id, id) of each text and the shortest other one that it begins with, word by word; ``sorted_``: texts."""
    above: list[tuple[str, str]] = []
    for text, id in sorted_:
        while above and not text.startswith(above[-1][0]):
            above.pop()
        first = next((known for start, known in above if text == start or text.startswith(f"{start} ")), None)
        if first is None:
            above.append((text, id))
        elif first != id:
            yield first, id


class Firsts:
    """The first row of each key."""

    def __init__(self) -> None:
        self._rows = TemporaryTable("CREATE TABLE firsts (key TEXT PRIMARY KEY, place TEXT, value TEXT) WITHOUT ROWID")

    def add(self, key: str, place: str, value: str | None = None) -> tuple[str, str | None] | None:
        """Add a row; return (place, value) of the first row with this ``key``, or None if this is the first."""
        if self._rows.write("INSERT OR IGNORE INTO firsts VALUES (?, ?, ?)", key, place, value):
            return None
        first, said = next(self._rows.read("SELECT place, value FROM firsts WHERE key = ?", key))
        return first, said
