"""Rewards of K responses, and rows of one response that belong together. Torch-free."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from pydantic import JsonValue

from pipeline.config import UserData
from pipeline.data.forms import cells
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.paths import find, first_name
from pipeline.data.records import Record

Meaning = Literal["scores", "ranks", "signed"] | None
Rewards = tuple[float | None, ...]


def ranked(score: float | None, meaning: Meaning) -> float | None:
    """Return a score that is higher for the better response; of a rank, its negative."""
    return None if score is None else 0.0 - score if meaning == "ranks" else score


def rewards_of(values: dict[str, JsonValue], data: UserData, count: int, cell: Callable[[str], JsonValue]) -> Rewards:
    """Return the reward of each of ``count`` responses; None: it has none. ``cell`` returns a column's list."""
    columns, several = data.columns, isinstance(data.columns.responses, tuple)
    if columns.best is not None:
        return _best(cells.number(cells.required(values, columns.best), columns.best), count, columns.best)
    if data.rewards_are == "signed":
        raise FaultError("rewards_are: signed is for two responses in the columns chosen and rejected")
    names = (columns.rewards,) if isinstance(columns.rewards, str) else columns.rewards
    if several and len(names) == count:
        found = [cells.reward(_cell_or_null(values, name), name) for name in names]
    else:
        found = _means([_rewards(cell(name), count, name) for name in names])
    rewards = tuple(ranked(score, data.rewards_are) for score in found)
    scored = sum(score is not None for score in rewards)
    if scored < 2:
        raise FaultError(f"{' + '.join(names)}: {scored} of {count} responses have a score", "lone_response")
    return rewards


def _cell_or_null(values: dict[str, JsonValue], column: str) -> JsonValue:
    """Return a cell that may be null but whose column must be there."""
    return find(values, column) if first_name(column) in values else cells.required(values, column)


def _rewards(value: JsonValue, count: int, column: str) -> list[float | None]:
    given = cells.listed(value, column, "numbers")
    if len(given) != count:
        raise FaultError(f"{column}: {len(given)} for {count} responses; one for each")
    return [cells.reward(item, f"{column}, item {place}") for place, item in enumerate(given, 1)]


def _means(rows: list[list[float | None]]) -> list[float | None]:
    """Return the mean of each response's numbers; None if it has none."""
    found: list[float | None] = []
    for given in zip(*rows, strict=True):
        known = [number for number in given if number is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _best(place: float, count: int, column: str) -> Rewards:
    if place not in range(count):
        raise FaultError(f"{column}: {place:g}; the place of one of {count} responses, from 0")
    return tuple(float(index == place) for index in range(count))


# ---------------------------------------------------------------- rows of one response


def grouped(records: Iterable[Record], data: UserData) -> Iterator[Record]:
    """Join consecutive rows with the same prompt into one, whose responses and rewards are lists.

    The joined row has the number of the first; all other columns are the first row's. Rows with a fault stay alone.
    """
    held: list[Record] = []
    for record in records:
        if held and not _belongs(held[0], record, data):
            yield _joined(held, data)
            held = []
        if record.fault is not None:
            yield record
        else:
            held.append(record)
    if held:
        yield _joined(held, data)


def _belongs(first: Record, record: Record, data: UserData) -> bool:
    columns = data.columns
    names = [*columns.prompt_columns, *(name for name in (columns.system, columns.history) if name is not None)]
    same = all(find(first.values, name) == find(record.values, name) for name in names)
    return record.fault is None and record.file == first.file and same


def _joined(held: list[Record], data: UserData) -> Record:
    columns = data.columns
    rewards = (columns.rewards,) if isinstance(columns.rewards, str) else columns.rewards
    if isinstance(columns.responses, tuple):
        return replace(held[0], fault="rows: responses reads one column of responses, not several")
    names = (columns.responses, *rewards)
    missing = next((name for name in names if all(find(r.values, name) is None for r in held)), None)
    if missing is not None:
        return replace(held[0], fault=f"no column {missing!r}, or nothing in it; rows: responses reads it")
    lists: dict[str, JsonValue] = {name: [find(record.values, name) for record in held] for name in names}
    return replace(held[0], values={**held[0].values, **lists})
