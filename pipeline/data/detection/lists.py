"""Several responses of a prompt, or one with its mark: settings that would read them. Torch-free."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pipeline.data.detection.first_rows import FirstRows
from pipeline.data.detection.names import (
    ANSWER_FIELDS,
    ANSWER_STEMS,
    BAD_WORDS,
    COMPLETIONS,
    GOOD_OR_BAD,
    GOOD_WORDS,
    NOT_SCORES,
    PAIR_MARKS,
    RANKS,
    RESPONSES,
    SCORES,
)
from pipeline.data.detection.pairs import FoundSettings, marked_scores
from pipeline.data.forms.cells import word

_TRUTHS = frozenset({"true", "false", "0", "1"})
# Fewer distinct prompts than rows: rows of one response each.
_REPEATED = 0.4


def groups(table: FirstRows, named: str | None) -> Iterator[FoundSettings]:
    """Yield settings for each list of responses and each list of numbers beside it; ``named``: the user's numbers."""
    for name in table.names:
        if table.holds(name, "objects") and "." not in name:
            yield from _of_objects(table, name, named)
    lists = [name for name in table.names if table.holds(name, "texts") and not _in_objects(table, name)]
    for name in [one for one in lists if one.rpartition(".")[2] in RESPONSES] or lists:
        yield from _of_texts(table, name, named)
    for pair in PAIR_MARKS:
        for stem in ANSWER_STEMS:
            for gap in ("_", " ", ""):
                names = [f"{stem}{gap}{mark}" for mark in pair]
                scores = marked_scores(table, pair)
                if scores is not None and all(table.is_answer(one) for one in names):
                    yield {"columns": {"responses": names, "rewards": scores}}


def _in_objects(table: FirstRows, name: str) -> bool:
    outer = name.rpartition(".")[0]
    return bool(outer) and table.holds(outer, "objects")


def _of_objects(table: FirstRows, name: str, named: str | None) -> Iterator[FoundSettings]:
    fields = [field for field in ANSWER_FIELDS if table.holds(f"{name}.{field}", "texts")]
    scores = [one for one in table.names if one.startswith(f"{name}.") and table.is_numeric(one)]
    for field in fields[:1]:
        for score in _chosen_scores(scores, named):
            yield {"columns": {"responses": f"{name}.{field}", "rewards": score}, **_ranks(table, score)}
        yield from _best(table, name, f"{name}.{field}")


def _of_texts(table: FirstRows, name: str, named: str | None) -> Iterator[FoundSettings]:
    parent = name.rpartition(".")[0]
    beside = [
        other
        for other in table.names
        if other != name and other.rpartition(".")[0] == parent and table.holds(other, "numbers")
    ]
    lengths = [len(value) for value in table.values(name) if isinstance(value, list)]
    same = [one for one in beside if [len(v) for v in table.values(one) if isinstance(v, list)] == lengths]
    for score in _chosen_scores(same, named):
        yield {"columns": {"responses": name, "rewards": score}, **_ranks(table, score)}
    if not same:
        yield from _best(table, name, name)


def _best(table: FirstRows, name: str, responses: str) -> Iterator[FoundSettings]:
    """Yield settings for the place of the best response, if a column has places in all of the lists."""
    shortest = min((len(value) for value in table.values(name) if isinstance(value, list)), default=0)
    for column in ("choice", "best", "best_index", "answer_index", "label"):
        values = table.values(column)
        if shortest > 2 and values and all(isinstance(v, int) and 0 <= v < shortest for v in values):
            yield {"columns": {"responses": responses, "best": column}}


def _chosen_scores(scores: Sequence[str], named: str | None) -> list[str]:
    """Return the columns whose names say that they are scores, or the one that the user names."""
    return [score for score in scores if (_is_score(score) if named is None else score == named)]


def _parts(name: str) -> set[str]:
    """Return the words of a column's name."""
    return {*re.split(r"[^a-z]+", name.rpartition(".")[2].casefold())}


def _is_score(name: str) -> bool:
    parts = _parts(name)
    return not parts.isdisjoint(SCORES) and parts.isdisjoint(NOT_SCORES)


def _ranks(table: FirstRows, name: str) -> FoundSettings:
    """Return the setting for ranks: whole numbers under a name that says so."""
    found = [item for value in table.values(name) for item in (value if isinstance(value, list) else [value])]
    whole = all(word(item).isdigit() for item in found if item is not None)
    return {"rewards_are": "ranks"} if whole and not _parts(name).isdisjoint(RANKS) else {}


# ---------------------------------------------------------------- one response a row


def rows_of_one(table: FirstRows, named: str | None) -> Iterator[FoundSettings]:
    """Yield settings for rows of one response, several for each prompt, and each column of numbers."""
    prompt = next((name for name in ("prompt", "instruction", "question") if table.holds(name, "text", "turns")), None)
    response = next((name for name in ("response", "output", "completion", "answer") if table.is_answer(name)), None)
    if prompt is None or response is None or len(table.rows) < 2:
        return
    cells = [row.get(prompt) for row in table.rows]
    repeated = sum(one == other for one, other in pairwise(cells)) / (len(cells) - 1)
    if repeated < _REPEATED:
        return
    if named is None and any(name in table.names for name in GOOD_OR_BAD):
        return
    numbers = [
        name
        for name in table.names
        if name not in (prompt, response) and "." not in name and table.holds(name, "number") and _is_score(name)
    ]
    for score in [named] if named is not None else numbers:
        columns = {"responses": response, "rewards": score}
        yield {"rows": "responses", "columns": columns, **_ranks(table, score)}


def marks(table: FirstRows, named: str | None) -> Iterator[FoundSettings]:
    """Yield settings for single responses that are marked good or bad."""
    completion = next((name for name in COMPLETIONS if table.is_answer(name)), None)
    labels = [name for name in GOOD_OR_BAD if name in table.names] if named is None else [named]
    if completion is None:
        return
    for label in labels:
        said = {word(value) for value in table.values(label) if not isinstance(value, list | dict)}
        plain: dict[str, Any] = {"columns": {"completion": completion, "label": label}}
        if said and said <= _TRUTHS:
            yield plain
        elif said and said <= {*GOOD_WORDS, *BAD_WORDS}:
            words = {"good": sorted(said & {*GOOD_WORDS}), "bad": sorted(said & {*BAD_WORDS})}
            yield {**plain, "labels": words}
