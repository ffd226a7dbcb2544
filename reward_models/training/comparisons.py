"""Comparisons of whole conversations, from a preference data set, for training a reward model. Torch-free."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pipeline.errors import UserError
from pipeline.training.batches.examples import Continuation, Example
from pipeline.types import TextGroup, TextPair, TextPreference, UnpairedText, content_hash
from reward_models.local.conversations import Conversations, Ids, split_shared, without_end

_CAUSES = ("tie", "identical", "long", "unshared")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pair and its tokens: one row for chosen, one for rejected."""

    pair: TextPair
    rows: tuple[Ids, Ids]


def pairs_of(preferences: Iterable[TextPreference]) -> Iterator[TextPair]:
    """Yield pairs unchanged, except for soft label ½ where the scores are equal, and every pair of a group's responses.

    Raises:
        UserError: single responses, which hold no comparison.
    """
    for row in preferences:
        match row:
            case TextPair():
                tied = row.chosen_score is not None and row.chosen_score == row.rejected_score
                yield replace(row, soft_label=0.5) if tied else row
            case TextGroup():
                scored = [
                    (turn, score) for turn, score in zip(row.answers, row.rewards, strict=True) if score is not None
                ]
                for two in combinations(scored, 2):
                    (chosen, high), (rejected, low) = sorted(two, key=lambda of: -of[1])
                    yield TextPair(
                        row.prompt,
                        chosen.content,
                        rejected.content,
                        high,
                        low,
                        soft_label=0.5 if high == low else 1.0,
                        chosen_extra=chosen.extra,
                        rejected_extra=rejected.extra,
                    )
            case UnpairedText():
                raise UserError("pairs: single responses marked good or bad; a reward model needs pairs or groups")


def compare(
    pairs: Sequence[TextPair], conversations: Conversations, padding: int | None, max_tokens: int, *, ties: bool
) -> tuple[list[Comparison], dict[str, int]]:
    """Return comparisons in the order of ``pairs``, and counts of dropped pairs by cause.

    Args:
        pairs: any.
        conversations: without a limit.
        padding: the id that decoder classifiers pool before; trailing padding is not part of a row.
        max_tokens: limit of a row; a pair with a longer row is dropped (``long``).
        ties: keep ties (else they are dropped as ``tie``). ``identical``: equal tokens. ``unshared``: rows that do not
            begin with the same token, so there is no prompt.
    """
    dropped: Counter[str] = Counter()
    asked = [(pair.prompt.messages, turn) for pair in pairs for turn in pair.answers]
    rows = [without_end(row, padding) for row in conversations.encode(asked)]
    found: list[Comparison] = []
    for pair, chosen, rejected in zip(pairs, rows[::2], rows[1::2], strict=True):
        cause = _fault(pair, chosen, rejected, max_tokens, ties)
        if cause is None:
            found.append(Comparison(pair, (chosen, rejected)))
        else:
            dropped[cause] += 1
    return found, {cause: dropped[cause] for cause in _CAUSES}


def example(comparison: Comparison) -> Example:
    """Return the comparison as a training example; the prompt is the shared beginning of both rows."""
    pair, rows = comparison.pair, comparison.rows
    shared, _ = split_shared(rows)
    # Each response keeps at least one token, even if one row is a prefix of the other.
    at = min(len(shared), *(len(row) - 1 for row in rows))
    scores = (pair.chosen_score, pair.rejected_score)
    responses = tuple(Continuation(row[at:], reward=score) for row, score in zip(rows, scores, strict=True))
    return Example(content_hash([*rows]), rows[0][:at], "pair", responses, pair.soft_label)


def _fault(pair: TextPair, chosen: Ids, rejected: Ids, max_tokens: int, ties: bool) -> str | None:
    if pair.soft_label == 0.5 and not ties:
        return "tie"
    if chosen == rejected:
        return "identical"
    if max(len(chosen), len(rejected)) > max_tokens:
        return "long"
    return "unshared" if min(len(chosen), len(rejected)) < 2 or chosen[0] != rejected[0] else None
