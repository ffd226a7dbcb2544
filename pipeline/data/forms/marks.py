"""Which response of a pair is the better one, and by how much: votes, names, signed numbers. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue

from pipeline.config import Columns, Signed, Votes
from pipeline.data.forms import cells
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.paths import find
from pipeline.types import TextPair

Cells = dict[str, JsonValue]


def voted(pair: TextPair, values: Cells, columns: Columns, settings: Votes) -> TextPair:
    """Return the pair in the order of its votes; their share is its soft label, ½ a tie."""
    _refuse_soft_label(values, columns, "votes")
    chosen, rejected, tie = _votes(values, columns, settings)
    total = chosen + rejected + tie
    share = (chosen + tie / 2) / total
    if settings.label == "majority":
        share = 1.0 if chosen > total / 2 else 0.0 if rejected > total / 2 else 0.5
    return replace(swapped(pair) if share < 0.5 else pair, soft_label=max(share, 1 - share))


def _votes(values: Cells, columns: Columns, settings: Votes) -> tuple[float, float, float]:
    if columns.votes is not None:
        names = (columns.votes,) if isinstance(columns.votes, str) else columns.votes
        found = [vote for name in names for vote in _listed(cells.required(values, name))]
        return _count(found, _meanings(values, columns, settings), " + ".join(names))
    counted = (columns.chosen_votes, columns.rejected_votes, columns.tie_votes)
    given = {column: cells.required(values, column) for column in counted if column is not None}
    # A column for each winner says true or false: one vote. Beside numbers, true is no count.
    truths = all(isinstance(value, bool) for value in given.values())
    counts = []
    for column in counted:
        value = 0 if column is None else given[column]
        count = float(value is True) if truths else cells.number(value, str(column))
        if count < 0:
            raise FaultError(f"{column}: {count:g} votes")
        counts.append(count)
    if not sum(counts):
        raise FaultError(f"{columns.chosen_votes} and {columns.rejected_votes}: no votes")
    return counts[0], counts[1], counts[2]


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _meanings(values: Cells, columns: Columns, settings: Votes) -> Sequence[tuple[str, ...]]:
    """Return the words for chosen, for rejected and for a tie, in this row."""
    chosen, rejected, tie = settings.meanings
    if columns.chosen_name is None or columns.rejected_name is None:
        return chosen, rejected, tie
    names = [cells.word(cells.required(values, column)) for column in (columns.chosen_name, columns.rejected_name)]
    if names[0] == names[1]:
        raise FaultError(f"{columns.chosen_name} and {columns.rejected_name}: both are {names[0]!r}")
    return (names[0],), (names[1],), tuple(word for word in tie if word not in names)


def _count(given: Sequence[JsonValue], meanings: Sequence[tuple[str, ...]], column: str) -> tuple[int, int, int]:
    """Count the votes for chosen, for rejected and for neither."""
    said = [cells.word(vote) for vote in given]
    known = {word for words in meanings for word in words}
    unknown = next((str(vote) for vote, vote_word in zip(given, said, strict=True) if vote_word not in known), None)
    if unknown is not None or not said:
        chosen, rejected, tie = (" or ".join(map(repr, words)) or "nothing" for words in meanings)
        what = "no votes" if unknown is None else f"vote {unknown[:60]!r}"
        raise FaultError(f"{column}: {what}; votes are {chosen} (chosen), {rejected} (rejected) and {tie} (tie)")
    counts = [sum(vote in words for vote in said) for words in meanings]
    return counts[0], counts[1], counts[2]


def preferred(pair: TextPair, values: Cells, columns: Columns, settings: Signed) -> TextPair:
    """Return the pair in the order that one signed number says; the number's size is its strength."""
    _refuse_soft_label(values, columns, "rewards_are: signed")
    names = (columns.rewards,) if isinstance(columns.rewards, str) else columns.rewards
    column = " + ".join(names)
    given = [item for name in names for item in _listed(cells.required(values, name)) if not cells.absent(item)]
    if not given:
        raise FaultError(f"{column}: holds no number")
    value = sum(cells.number(item, column) for item in given) / len(given)
    share = (value - settings.first) / (settings.second - settings.first)
    if not 0 <= share <= 1:
        raise FaultError(
            f"{column}: {value:g}; signed numbers go from {settings.first:g} to {settings.second:g} "
            "(signed.first, signed.second)"
        )
    ordered = swapped(pair) if share > 0.5 else pair
    label = max(share, 1 - share)
    match settings.strength:
        case "soft_label":
            return replace(ordered, soft_label=label)
        case "margin":
            distance = abs(value - (settings.first + settings.second) / 2)
            return replace(ordered, chosen_score=distance, rejected_score=0.0, soft_label=0.5 if share == 0.5 else 1.0)
        case "none":
            return replace(ordered, soft_label=0.5 if share == 0.5 else 1.0)


def _refuse_soft_label(values: Cells, columns: Columns, other: str) -> None:
    if not cells.absent(find(values, columns.soft_label)):
        verb = "decide" if other == "votes" else "decides"
        raise FaultError(f"{columns.soft_label}: a soft label, but {other} {verb} it; leave one of the two out")


def swapped(pair: TextPair) -> TextPair:
    """Return the pair with its sides, and all that belongs to them, exchanged."""
    wins = pair.win_probability_rejected
    if wins is None and pair.win_probability is not None:
        wins = 1 - pair.win_probability
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
        win_probability=wins,
        win_probability_rejected=pair.win_probability,
        chosen_prior=pair.rejected_prior,
        rejected_prior=pair.chosen_prior,
        chosen_extra=pair.rejected_extra,
        rejected_extra=pair.chosen_extra,
        chosen_turns=pair.rejected_turns,
        rejected_turns=pair.chosen_turns,
    )
