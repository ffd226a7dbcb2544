"""How the user's data is to be read, found by looking at its first rows: settings, and what they say. Torch-free.

Names and kinds of cells propose readings; each is tried on the rows. What the user has set is kept. A reading is taken
only if it is the only one of its form that reads the rows; forms are tried in the order pairs whose names say which
response is preferred, pairs that another column decides, lists, rows of one response, marks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.config import UserData
from pipeline.data.detection.first_rows import FirstRows
from pipeline.data.detection.lists import groups, marks, rows_of_one
from pipeline.data.detection.names import CONVERSATIONS, PROMPT_COLUMNS, REFERENCES, SYSTEMS
from pipeline.data.detection.pairs import FoundSettings, certain_pairs, decided_pairs
from pipeline.data.files.records import Record, read_records
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.joined import grouped
from pipeline.data.forms.parsing import preference_of, prompt_of
from pipeline.data.forms.paths import first_name
from pipeline.types import Prompt, TextPair

# Rows that are looked at, and rows that each reading is tried on.
_LOOKED_AT, _TRIED = 1000, 200
# A reading that reads fewer rows is none.
_FEWEST = 0.5
# Scores that contradict a reading's choice in more rows than the first, while another's do in fewer than the second.
_CONTRADICTED, _AGREED = 0.5, 0.1

Wanted = Callable[[Record, UserData], Any]


@dataclass(frozen=True)
class Reading:
    """One way to read the data.

    Attributes:
        data: the user's settings with those that were found.
        found: only those that were found.
        form: what a row becomes: a pair, a group, a marked response or a prompt.
        share: of the rows tried, those that can be read.
        contradicted: of the pairs with scores, those whose rejected response has the higher one.
        prompt: where the prompt is: a column, the turns before the answers, or only the start that two texts share.
        fault: of the first row that cannot be read, with its number.
    """

    data: UserData
    found: FoundSettings
    form: type
    share: float
    contradicted: float
    prompt: Literal["column", "turns", "start"]
    fault: str | None = None


@dataclass(frozen=True)
class Readings:
    """The readings that fit; if there are none, the proposed one that reads most rows; the columns."""

    fit: tuple[Reading, ...]
    nearest: Reading | None = None
    columns: tuple[str, ...] = ()


def readings_of_pairs(data: UserData) -> Readings:
    """Return the readings of preferences that fit: the settings as they are, alone, if they do.

    Raises:
        UserError: no data, or a file that is damaged as a whole.
    """
    look = _Look(data, partial(preference_of, several_turns=True))
    own = look.as_set()
    if own is not None and own.prompt == "start":
        own = _better(own, look.with_prompt({}))
    if not look.records or (own is not None and not _rivals(look)):
        return Readings(() if own is None else (look.completed(own),))
    votes, rewards, label = (look.named(column) for column in ("votes", "rewards", "label"))
    proposed = (
        # What is set may lack only the prompt.
        chain(({},) if own is None else (), certain_pairs(look.table)),
        decided_pairs(look.table, votes or rewards),
        groups(look.table, rewards),
        rows_of_one(look.table, rewards),
        marks(look.table, label),
    )
    for each in proposed:
        found = [reading for settings in each if (reading := look.with_prompt(settings)) is not None]
        if found:
            return Readings(tuple(look.completed(reading) for reading in _sure(found)))
    return Readings((), look.nearest, look.table.names) if own is None else Readings((look.completed(own),))


def readings_of_prompts(data: UserData) -> Readings:
    """Return the readings of prompts that fit: the settings as they are, or the likeliest column. Raises as above."""
    look = _Look(data, prompt_of)
    whole = (look.tried({"columns": {"prompt": name, "response": name}}) for name in CONVERSATIONS)
    reading = look.tried({}) or look.with_prompt({}) or next((found for found in whole if found is not None), None)
    if reading is None:
        pairs = (look.tried(found.found) for found in readings_of_pairs(data).fit)
        fit = tuple(found for found in pairs if found is not None)
        return Readings(fit[:1], look.nearest, look.table.names)
    answer = next((name for name in REFERENCES if look.table.holds(name, "text", "number")), None)
    if answer not in (None, "answer") and look.named("answer") is None:
        reading = look.tried(merged(reading.found, {"columns": {"answer": answer}})) or reading
    return Readings((look.completed(reading),))


def _better(one: Reading | None, other: Reading | None) -> Reading | None:
    """Return the reading that guesses no prompt, or else reads more rows; of equal ones the first."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda reading: (reading.prompt != "start", reading.share))


def _rivals(look: "_Look") -> bool:
    """Return whether other columns than those that are set name a preferred response, and the user has not chosen."""
    given = {"chosen", "rejected", "votes"} & {*look.given.get("columns", {})}
    if len(given) > 1:
        return False
    fitting = [settings for settings in certain_pairs(look.table) if look.with_prompt(settings) is not None]
    return len(fitting) > (0 if given else 1)


def _sure(found: Sequence[Reading]) -> list[Reading]:
    """Leave out repetitions, and readings that scores contradict where they confirm another."""
    distinct = [one for place, one in enumerate(found) if one.data not in [other.data for other in found[:place]]]
    confirmed = any(one.contradicted < _AGREED for one in distinct)
    return [one for one in distinct if not (confirmed and one.contradicted > _CONTRADICTED)]


class _Look:
    """The first rows, and trials of settings on them."""

    def __init__(self, data: UserData, parse: Wanted) -> None:
        self.data = data
        self._parse = parse
        self.records = [record for record in islice(read_records(data), _LOOKED_AT) if record.fault is None]
        self.table = FirstRows([record.values for record in self.records])
        self.given: FoundSettings = data.model_dump(exclude_unset=True)
        self.nearest: Reading | None = None

    def tried(self, settings: FoundSettings) -> Reading | None:
        """Return the reading with these settings, or None if it reads too few rows or contradicts the user's."""
        if _contradicts(settings, self.given):
            return None
        try:
            data = type(self.data).model_validate(merged(settings, self.given))
        except ValidationError:
            return None
        if not self.records:
            return None
        rows = self.records[:_TRIED]
        records = list(grouped(rows, data)) if data.rows == "responses" else rows
        read, faults = self._read(records, data)
        share = len(read) / len(records)
        if share < _FEWEST:
            # More than another column for the prompt.
            proposed = settings.keys() > {"columns"} or len(settings.get("columns", {})) > 1
            if proposed and (self.nearest is None or share > self.nearest.share):
                form = type(next(iter(read), None))
                self.nearest = Reading(data, settings, form, share, 0.0, self._place(read, data), faults[0])
            return None
        # A column that decides no pair means something else.
        if settings and all(isinstance(pair, TextPair) and pair.soft_label == 0.5 for pair in read):
            return None
        scored = [
            pair.chosen_score < pair.rejected_score
            for pair in read
            if isinstance(pair, TextPair) and pair.chosen_score is not None and pair.rejected_score is not None
        ]
        contradicted = sum(scored) / len(scored) if scored else 0.0
        return Reading(data, settings, type(read[0]), share, contradicted, self._place(read, data))

    def _place(self, read: Sequence[Any], data: UserData) -> Literal["column", "turns", "start"]:
        if any((row if isinstance(row, Prompt) else row.prompt).guessed for row in read):
            return "start"
        return (
            "column" if any(first_name(name) in self.table.names for name in data.columns.prompt_columns) else "turns"
        )

    def _read(self, records: Sequence[Record], data: UserData) -> tuple[list[Any], list[str]]:
        """Return what the records are, and the faults of those that are nothing."""
        read, faults = [], []
        for record in records:
            try:
                if record.fault is not None:
                    raise FaultError(record.fault)
                read.append(self._parse(record, data))
            except FaultError as fault:
                faults.append(f"row {record.number}: {fault}")
        return read, faults

    def as_set(self) -> Reading | None:
        """Return the reading with the user's settings alone, and with ``parse`` if cells that it reads need it."""
        columns = self.data.columns
        named = {name for value in columns.__dict__.values() for name in _each(value) if name in self.table.names}
        if any(self.table.written_out(name) for name in named) and "parse" not in self.given:
            parsed = self.tried({"parse": True})
            if parsed is not None:
                return parsed
        return self.tried({})

    def named(self, column: str) -> str | None:
        """Return the one name that the user gave to a column."""
        value = self.given.get("columns", {}).get(column)
        return value if isinstance(value, str) else None

    def with_prompt(self, settings: FoundSettings) -> Reading | None:
        """Return the reading with the prompt column that reads most rows; of equal ones the likeliest."""
        used = {name for value in settings.get("columns", {}).values() for name in _each(value)}
        best: Reading | None = None
        for prompt in self._prompts(used):
            for parse in ({}, {"parse": True}) if self._written_out(used, prompt) else ({},):
                columns = {} if prompt == "prompt" else {"columns": {"prompt": prompt}}
                reading = self.tried(merged(merged(settings, columns), parse))
                if reading is not None:
                    best = reading if parse else _better(best, reading)
            if best is not None and best.share == 1 and best.prompt != "start":
                break
        return best

    def _prompts(self, used: set[str]) -> Iterator[Any]:
        if "prompt" in self.given.get("columns", {}):
            yield self.given["columns"]["prompt"]
            return
        # Conversations may hold the prompt.
        if "prompt" in self.table.names or any(self.table.holds(name, "turns", "text") for name in used):
            yield "prompt"
        # The prompt of orig_response_A is rather orig_instruction than instruction.
        own = [
            prefix
            for prefix in (name.partition("_")[0] for name in used)
            if f"{prefix}_instruction" in self.table.names
        ]
        for names in (*(f"{prefix}_instruction" for prefix in own[:1]), *PROMPT_COLUMNS):
            listed = [*_each(names)]
            present = [name for name in listed if name in self.table.names and name not in used]
            if len(present) == len(listed) and all(self.table.values(name) for name in listed[:1]):
                yield names if isinstance(names, str) else list(names)

    def _written_out(self, used: set[str], prompt: Any) -> bool:
        return any(self.table.written_out(name) for name in (*used, *_each(prompt)))

    def completed(self, reading: Reading) -> Reading:
        """Return the reading with what other columns hold (system turn, history, scores) if it reads as many rows."""
        for settings in self._extras(reading.data):
            further = self.tried(merged(reading.found, settings))
            if further is not None and further.share >= reading.share:
                reading = further
        return reading

    def _extras(self, data: UserData) -> Iterator[FoundSettings]:
        table, columns = self.table, data.columns
        read = {name for value in columns.__dict__.values() for name in _each(value) if isinstance(name, str)}
        for name in SYSTEMS:
            if columns.system is None and name not in read and table.holds(name, "text"):
                yield {"columns": {"system": name}}
        if columns.history is None and "history" not in read and table.holds("history", "lists", "turns"):
            yield {"columns": {"history": "history"}}
        if self.named("tools") is None and "input.tools" in table.names:
            yield {"columns": {"tools": "input.tools"}}
        if columns.chosen == "chosen" and columns.rejected == "rejected" and "chosen" in table.names:
            for settings in certain_pairs(table):
                scored = len(settings["columns"]) > 2 and settings["columns"]["chosen"] == "chosen"
                if scored and not {"chosen_score", "rejected_score"} & {*self.given.get("columns", {})}:
                    yield settings


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def merged(under: FoundSettings, over: FoundSettings) -> FoundSettings:
    """Return ``under`` with the settings of ``over`` laid over it."""
    found = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def _contradicts(settings: FoundSettings, given: FoundSettings) -> bool:
    """Return whether the user has set one of these settings to something else."""
    for name, value in settings.items():
        if name not in given:
            continue
        if isinstance(value, dict) and isinstance(given[name], dict):
            if _contradicts(value, given[name]):
                return True
        elif _each(value) != _each(given[name]):
            return True
    return False
