"""A preview of a round's pairs before training: their number, margins, lengths and some examples."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from flows.report.charts import Histogram, histogram
from pipeline.types import Group, Pair, Preference, Response, derive_seed


@dataclass(frozen=True, slots=True)
class Preview:
    """A summary of one round's pairs, groups or marked responses.

    Attributes:
        kind: ``pair``, ``group`` or ``unpaired``.
        rows: number of rows.
        margins: score differences: of pairs, or of the best and the worst of groups; rows without scores are left out.
        lengths: histograms of token counts (of what labellers see) by name: chosen, rejected; responses; good, bad.
        longer_chosen: share of the pairs of unequal length whose chosen response is the longer one; None: no such pair.
        examples: up to ten rows, chosen at random.
        images: responses are images, which have no lengths.
    """

    kind: str
    rows: int
    margins: Histogram
    lengths: dict[str, Histogram]
    longer_chosen: float | None
    examples: tuple[Preference, ...]
    images: bool = False


def preview(made: Sequence[Preference], seed: int = 0, shown: int = 10, *, images: bool = False) -> Preview:
    """Summarise ``made``: at least one row, all of one kind."""
    lots = random.Random(derive_seed("preview", seed))  # noqa: S311 - random draws, not secrets
    places = sorted(lots.sample(range(len(made)), min(shown, len(made))))
    sides = {} if images else _sides(made)
    unlike = [(len(row.chosen.shown_ids), len(row.rejected.shown_ids)) for row in made if isinstance(row, Pair)]
    unlike = [(chosen, rejected) for chosen, rejected in unlike if chosen != rejected]
    return Preview(
        type(made[0]).__name__.lower(),
        len(made),
        histogram([margin for row in made if (margin := _margin(row)) is not None]),
        {name: histogram([float(len(response.shown_ids)) for response in found]) for name, found in sides.items()},
        sum(chosen > rejected for chosen, rejected in unlike) / len(unlike) if unlike and not images else None,
        tuple(made[place] for place in places),
        images,
    )


def _sides(made: Sequence[Preference]) -> dict[str, list[Response]]:
    found: defaultdict[str, list[Response]] = defaultdict(list)
    for row in made:
        match row:
            case Pair():
                found["chosen"].append(row.chosen)
                found["rejected"].append(row.rejected)
            case Group():
                found["responses"] += row.responses
            case _:
                found["good" if row.desirable else "bad"].append(row.response)
    return found


def _margin(row: Preference) -> float | None:
    match row:
        case Pair():
            scores = [row.chosen_score, row.rejected_score]
        case Group():
            scores = [*row.scores]
        case _:
            scores = []
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return None
    return known[0] - known[1] if isinstance(row, Pair) else max(known) - min(known)
