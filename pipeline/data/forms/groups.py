"""Rewards of K responses. Torch-free."""

from collections.abc import Callable
from typing import Literal

from pydantic import JsonValue

from pipeline.config import UserData
from pipeline.data.forms import cells
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.paths import find, first_name
from pipeline.types.counts import number_of

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
        raise FaultError(f"{column}: {len(given)} for {number_of(count, 'response')}; one for each")
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
