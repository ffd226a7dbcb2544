"""Two responses in two columns, and what says which one is better: settings that would read them. Torch-free."""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.data.detection.first_rows import FirstRows, is_number
from pipeline.data.detection.names import (
    ANSWER_FIELDS,
    ANSWER_STEMS,
    CERTAIN_PAIRS,
    DECIDER_ENDS,
    DECIDERS,
    FIRST_IS_NEGATIVE,
    MARKED_SCORES,
    PAIR_MARKS,
    SIDE_SCORES,
    STEM_ENDS,
    TIES,
)
from pipeline.data.forms.cells import word

FoundSettings = dict[str, Any]
# Columns of the first and of the second response, and the marks that tell them apart.
_Pair = tuple[str, str, tuple[str, str]]
_MARKED = re.compile(r"(?P<stem>.*?)(?P<gap>[ _-]?)(?P<mark>[012ab])", re.IGNORECASE | re.DOTALL)
_NUMBERED = re.compile(r"(.*\D)\d{1,2}", re.DOTALL)


def certain_pairs(table: FirstRows) -> Iterator[FoundSettings]:
    """Yield settings for each two columns whose names say which response is preferred."""
    for chosen, rejected in CERTAIN_PAIRS:
        if table.is_answer(chosen) and table.is_answer(rejected):
            yield {"columns": {"chosen": chosen, "rejected": rejected, **_side_scores(table)}}


def decided_pairs(table: FirstRows, named: str | None) -> Iterator[FoundSettings]:
    """Yield settings for each two columns of responses and each column that can say which is better.

    ``named``: the column that the user says decides.
    """
    for first, second, marks in _pairs(table):
        columns = {"chosen": first, "rejected": second, **_marked_scores(table, (first, second), marks)}
        for decided in _deciders(table, (first, second), marks, named):
            yield {**decided, "columns": {**columns, **decided["columns"]}}


def _side_scores(table: FirstRows) -> FoundSettings:
    for form in SIDE_SCORES:
        names = [form.format(side) for side in ("chosen", "rejected")]
        if all(table.is_numeric(name) for name in names):
            return {"chosen_score": names[0], "rejected_score": names[1]}
    return {}


def _marked_scores(table: FirstRows, pair: tuple[str, str], marks: tuple[str, str]) -> FoundSettings:
    names = marked_scores(table, marks)
    for stem in MARKED_SCORES:
        own = [f"{name}_{stem}" for name in pair]
        if names is None and all(table.is_numeric(name) for name in own):
            names = own
    return {} if names is None else {"chosen_score": names[0], "rejected_score": names[1]}


def marked_scores(table: FirstRows, marks: tuple[str, ...]) -> list[str] | None:
    """Return the columns with the number of each response, told apart by the responses' marks."""
    for stem in MARKED_SCORES:
        for gap in ("_", " ", "-", ""):
            for found in (marks, tuple(mark.upper() for mark in marks)):
                names = [f"{stem}{gap}{mark}" for mark in found]
                if all(table.is_numeric(name) for name in names):
                    return names
    return None


def _is_stem(stem: str) -> bool:
    return stem in ANSWER_STEMS or stem.endswith(STEM_ENDS)


def _pairs(table: FirstRows) -> Iterator[_Pair]:
    for name in table.names:
        found = _MARKED.fullmatch(name)
        if found is None or not _is_stem(found["stem"].casefold()) or not table.is_answer(name):
            continue
        for one, other in PAIR_MARKS:
            mark = found["mark"]
            second = f"{found['stem']}{found['gap']}{other.upper() if mark.isupper() else other}"
            if mark.casefold() == one and table.is_answer(second):
                yield name, second, (one, other)
    for name in table.names:
        lists = [value for value in table.values(name) if isinstance(value, list)]
        if not lists or any(len(value) != 2 for value in lists) or len(lists) < len(table.values(name)):
            continue
        if table.holds(name, "texts") and "." not in name:
            yield f"{name}[0]", f"{name}[1]", ("0", "1")
        if table.holds(name, "objects"):
            for field in ANSWER_FIELDS:
                sides = (f"{name}[0].{field}", f"{name}[1].{field}")
                if all(table.is_answer(side) for side in sides):
                    yield *sides, ("0", "1")


# ---------------------------------------------------------------- which one is better


def _deciders(
    table: FirstRows, pair: tuple[str, str], marks: tuple[str, str], named: str | None
) -> Iterator[FoundSettings]:
    counts = [next((name for name in _count_names(mark) if table.is_numeric(name)), None) for mark in marks]
    if None not in counts and named is None:
        tie = next((name for name in ("winner_tie", "tie", "ties", "tie_votes") if table.is_numeric(name)), None)
        columns = {"chosen_votes": counts[0], "rejected_votes": counts[1]} | ({"tie_votes": tie} if tie else {})
        yield {"columns": columns}
        return
    for column in _columns(table, named):
        names = [column] if isinstance(column, str) else [*column]
        said = {word(item) for name in names for value in table.values(name) for item in _each(value)}
        if said:
            yield from _meanings(table, column, said, pair, marks)


def _count_names(mark: str) -> tuple[str, ...]:
    return (f"winner_model_{mark}", f"votes_{mark}", f"winner_{mark}")


def _columns(table: FirstRows, named: str | None) -> Iterator[str | list[str]]:
    if named is not None:
        yield named
        return
    for name in table.names:
        decides = name in DECIDERS or name.endswith(DECIDER_ENDS)
        one_each = all(_is_one_each(value) for value in table.values(name))
        if decides and not one_each and not table.holds(name, "objects", "object", "turns"):
            yield name
    stems: dict[str, list[str]] = {}
    for name in table.names:
        found = _NUMBERED.fullmatch(name)
        if found is not None and found[1].strip(" _-").casefold() in ("annotator", "vote", "label", "judge", "rater"):
            stems.setdefault(found[1], []).append(name)
    yield from (names for names in stems.values() if len(names) > 1)


def _is_one_each(value: Any) -> bool:
    """Return whether a cell holds one value for each of two responses: different ones."""
    return isinstance(value, list) and len(value) == 2 and value[0] != value[1]


def _each(value: Any) -> list[Any]:
    return [item for item in value if item is not None] if isinstance(value, list) else [value]


def _meanings(
    table: FirstRows, column: str | list[str], said: set[str], pair: tuple[str, str], marks: tuple[str, str]
) -> Iterator[FoundSettings]:
    if all(is_number(one) for one in said):
        yield from _numbers(column, said, marks)
        return
    ties = sorted(one for one in said if any(tie in one for tie in TIES))
    used = [words for words in _words(pair, marks) if not said.isdisjoint(words)]
    if used and said <= {*ties, *(one for words in used for one in words)}:
        votes = {"chosen": [words[0] for words in used], "rejected": [words[1] for words in used], "tie": ties or None}
        yield {"columns": {"votes": column}, "votes": votes}
        return
    names = [f"model_{mark}" for mark in marks]
    if all(table.holds(name, "text") for name in names):
        models = {word(value) for name in names for value in table.values(name)}
        if said <= {*models, *ties}:
            sides = {"votes": column, "chosen_name": names[0], "rejected_name": names[1]}
            yield {"columns": sides, "votes": {"tie": ties or None}}


def _words(pair: tuple[str, str], marks: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the words that can name the first and the second response."""
    forms = ("{}", "[[{}]]", "model_{}", "model {}", "response_{}", "response {}", "assistant_{}", "assistant {}")
    named = [(form.format(marks[0]), form.format(marks[1])) for form in (*forms, "output_{}", "answer_{}")]
    own = (pair[0].casefold(), pair[1].casefold())
    return [*named, *([] if own in named else [own])]


def _numbers(column: str | list[str], said: set[str], marks: tuple[str, str]) -> Iterator[FoundSettings]:
    numbers = {float(one) for one in said}
    if min(numbers) < 0 or column in FIRST_IS_NEGATIVE:
        yield from _signed(column, max(map(abs, numbers)))
    elif any(not number.is_integer() for number in numbers):
        low, high = (1, 2) if min(numbers) >= 1 else (0, 1)
        if max(numbers) <= high:
            readings = [(low, high)] if low == 1 else [(low, high), (high, low)]
            for first, second in readings:
                yield {
                    "columns": {"rewards": column},
                    "rewards_are": "signed",
                    "signed": {"first": first, "second": second},
                }
    else:
        yield from _indices(column, said, marks)


def _signed(column: str | list[str], largest: float) -> Iterator[FoundSettings]:
    """Yield the directions of a signed number, up to the largest that occurs; a known one may be of a scale to 3."""
    known = column in FIRST_IS_NEGATIVE
    for size in (largest,) if largest >= 3 or not known else (3.0,) if largest > 1 else (3.0, largest):
        bound = int(size) if size.is_integer() else size
        for first, second in [(-bound, bound)] if known else [(-bound, bound), (bound, -bound)]:
            signed = {} if (first, second) == (-3, 3) else {"signed": {"first": first, "second": second}}
            yield {"columns": {"rewards": column}, "rewards_are": "signed", **signed}


def _indices(column: str | list[str], said: set[str], marks: tuple[str, str]) -> Iterator[FoundSettings]:
    """Yield what whole numbers can mean: the number of the response; truth of "the first is better"."""
    names_index = isinstance(column, str) and (column.endswith("_id") or column == "choice")
    readings: list[tuple[str, str, str | None]] = []
    if said <= {"0", "1"} and (marks == ("0", "1") or (names_index and "0" in said)):
        readings = [("0", "1", None)]
    elif said <= {"0", "1"} and marks == ("a", "b"):
        readings = [("1", "0", None), ("0", "1", None)]
    elif said <= {"1", "2"}:
        readings = [("1", "2", None)]
    elif said <= {"0", "1"}:
        readings = [("0", "1", None), ("1", "0", None), ("1", "2", "0")]
    elif said <= {"0", "1", "2"}:
        readings = [("1", "2", "0"), ("0", "1", "2")]
    for chosen, rejected, tie in readings:
        plain = {"chosen": int(chosen), "rejected": int(rejected), "tie": None if tie is None else int(tie)}
        yield {"columns": {"votes": column}, "votes": plain}
