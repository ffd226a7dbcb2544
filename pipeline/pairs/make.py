"""What a round trains on, from scored groups: pairs, groups that can be compared, or responses marked good or bad.

Ties, equal responses and missing labels never become pairs; whatever is dropped is counted by cause.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence, Set

from pipeline.config import Pairing
from pipeline.pairs.filters import PAIR_CAUSES, RESPONSE_CAUSES, Scored, distinct, usable
from pipeline.pairs.rules import choose
from pipeline.pairs.wins import Opponent, group_wins
from pipeline.types import Group, Pair, Preference, Unpaired, derive_seed

Counts = dict[str, int]


def make_pairs(
    groups: Iterable[Group], settings: Pairing, round_: int, seed: int, win_against: Opponent = "average"
) -> tuple[list[Pair], Counts]:
    """Pairs from scored ``groups``, and what was dropped by cause.

    Lots depend on ``seed``, ``round_`` and the prompt alone. Win probabilities are those of
    ``wins.group_wins``.

    Counts: responses by the causes of ``filters.usable``; ``too_few`` (fewer than two responses left) are groups;
    those of ``filters.why_no_pair`` and ``capped`` are pairs, see ``rules.choose``.
    """
    dropped: Counter[str] = Counter()
    pairs: list[Pair] = []
    for group in groups:
        candidates = usable(group, settings, dropped)
        if len(candidates) < 2:
            dropped["too_few"] += 1
            continue
        lots = random.Random(derive_seed("pairs", seed, round_, group.prompt.id))  # noqa: S311 - lots, not secrets
        for better, worse in choose(candidates, settings, lots, dropped):
            pairs.append(_pair(group, better, worse, win_against, round_))
    return pairs, _counts(dropped, RESPONSE_CAUSES, ("too_few",), PAIR_CAUSES, ("capped",))


def make_groups(groups: Iterable[Group], settings: Pairing) -> tuple[list[Group], Counts]:
    """The usable responses of scored ``groups``, for losses over K responses, and what was dropped by cause.

    Counts as ``make_pairs``, but for ties: responses of equal score stay, since a loss over K responses learns from
    those too, and ``near_duplicate`` are responses. Neither the rule nor margins nor lengths of pairs are read.
    """
    dropped: Counter[str] = Counter()
    kept: list[Group] = []
    for group in groups:
        left = distinct(usable(group, settings, dropped), settings, dropped)
        if len(left) < 2:
            dropped["too_few"] += 1
            continue
        kept.append(group.only([group.responses.index(response) for response, _ in left]))
    return kept, _counts(dropped, RESPONSE_CAUSES, ("near_duplicate", "too_few"))


def make_marked(groups: Iterable[Group], settings: Pairing) -> tuple[list[Unpaired], Counts]:
    """Usable responses marked good if their score is above the threshold, bad if below; and what was dropped.

    The threshold is ``settings.threshold``, or the mean score of the group's usable responses. ``tie`` counts
    responses within ``min_margin`` of it; ``near_duplicate`` are responses, as in ``make_groups``.
    """
    dropped: Counter[str] = Counter()
    marked: list[Unpaired] = []
    for group in groups:
        left = distinct(usable(group, settings, dropped), settings, dropped)
        if not left:
            continue
        mean = sum(score for _, score in left) / len(left)
        middle = mean if settings.threshold is None else settings.threshold
        for response, score in left:
            if abs(score - middle) <= settings.min_margin:
                dropped["tie"] += 1
            else:
                marked.append(Unpaired(group.prompt, group.prompt_ids, response, desirable=score > middle))
    return marked, _counts(dropped, RESPONSE_CAUSES, ("near_duplicate", "tie"))


def drop_repeated(preferences: Iterable[Preference], earlier: Set[str]) -> tuple[list[Preference], Counts]:
    """Those whose id is not in ``earlier``; the others, and the second of two equal ones, are counted ``repeated``."""
    kept: dict[str, Preference] = {}
    total = 0
    for preference in preferences:
        total += 1
        if preference.id not in earlier:
            kept.setdefault(preference.id, preference)
    return [*kept.values()], {"repeated": total - len(kept)}


def _counts(dropped: Counter[str], *causes: Sequence[str]) -> Counts:
    return {cause: dropped[cause] for part in causes for cause in part}


def _pair(group: Group, better: Scored, worse: Scored, win_against: Opponent, round_: int) -> Pair:
    wins, wins_rejected = group_wins(group, better[0], worse[0], win_against)
    return Pair(
        group.prompt,
        group.prompt_ids,
        better[0],
        worse[0],
        better[1],
        worse[1],
        win_probability=wins,
        win_probability_rejected=wins_rejected,
        round=round_,
    )
