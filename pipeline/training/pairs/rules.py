"""Choose pairs from a prompt's usable responses."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from pipeline.config import Pairing
from pipeline.training.pairs.filters import Scored, why_no_pair

ScoredPair = tuple[Scored, Scored]


def choose_pairs(
    usable: Sequence[Scored], settings: Pairing, lots: random.Random, dropped: Counter[str]
) -> list[ScoredPair]:
    """Return the pairs that ``settings.rule`` chooses, the better response first; needs at least two ``usable`` ones.

    Equally good pairs are chosen at random. If a rule for one pair per prompt finds no allowed pair, it counts one in
    ``dropped``: the cause that excludes a pair with a margin, if there is such a pair, else ``tie``. ``all`` and
    ``median_split`` count each pair that is not allowed. ``capped`` counts allowed pairs beyond ``max_pairs``.
    """
    shuffled = lots.sample(usable, len(usable))
    candidates = _candidates(shuffled, settings)
    causes = [why_no_pair(better, worse, settings) for better, worse in candidates]
    allowed = [pair for pair, cause in zip(candidates, causes, strict=True) if cause is None]
    if settings.rule in ("all", "median_split"):
        dropped.update(cause for cause in causes if cause is not None)
        if settings.max_pairs is None or len(allowed) <= settings.max_pairs:
            return allowed
        dropped["capped"] += len(allowed) - settings.max_pairs
        return lots.sample(allowed, settings.max_pairs)
    if not allowed:
        # If some pair is not a tie, its cause is more informative than the ties.
        found = [cause for cause in causes if cause is not None]
        dropped[next((cause for cause in found if cause != "tie"), found[0])] += 1
        return []
    match settings.rule:
        case "closest":
            return [min(allowed, key=_margin)]
        case "random" | "best_random":
            return [lots.choice(allowed)]
        case _:
            return [max(allowed, key=_margin)]


def _candidates(shuffled: Sequence[Scored], settings: Pairing) -> list[ScoredPair]:
    if settings.rule == "median_split":
        ranked = sorted(shuffled, key=lambda item: -item[1])
        half = len(ranked) // 2
        return [*zip(ranked[:half], ranked[-half:], strict=True)]
    if settings.rule == "best_random":
        best = max(shuffled, key=lambda item: item[1])
        return [(best, other) for other in shuffled if other is not best]
    return [(one, other) if one[1] >= other[1] else (other, one) for one, other in combinations(shuffled, 2)]


def _margin(pair: ScoredPair) -> float:
    return pair[0][1] - pair[1][1]
