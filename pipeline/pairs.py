"""Preference pairs, or groups that can be compared, from scored groups.

Ties, equal responses and missing labels never become pairs; whatever is dropped is counted by cause.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

from pipeline.config import Pairing
from pipeline.types import Group, Pair, Response, derive_seed

Cause = Literal["cut", "empty", "missing_label", "identical", "too_few", "tie"]
CAUSES: tuple[Cause, ...] = ("cut", "empty", "missing_label", "identical", "too_few", "tie")
# Whom a win probability is against: the average of the policy's answers, or the other response of the pair.
Opponent = Literal["average", "other"]
Scored = tuple[Response, float]


def make_pairs(
    groups: Iterable[Group], settings: Pairing, round_: int, seed: int, win_against: Opponent = "average"
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs from scored ``groups``, and what was dropped by cause.

    ``best_worst`` takes the best against the worst response of a group (equally good ones by lot),
    ``random`` two responses by lot, ``all`` every two. A difference of scores at or below
    ``settings.min_margin`` is a tie. Lots depend on ``seed``, ``round_`` and the prompt alone. Win
    probabilities are those of ``win_probability`` among all scored responses of the group, or against the other one.

    Counts: ``cut`` (ended by the length limit, with ``drop_cut``), ``empty`` (no text),
    ``missing_label`` and ``identical`` (same tokens as another of the group, or same text and end) are responses;
    ``too_few`` (fewer than two responses left) are groups; ``tie`` are pairs, one a group save for ``all``.
    """
    dropped: Counter[str] = Counter()
    pairs: list[Pair] = []
    for group in groups:
        usable = _usable(group, settings, dropped)
        if len(usable) < 2:
            dropped["too_few"] += 1
            continue
        lots = random.Random(derive_seed("pairs", seed, round_, group.prompt.id))  # noqa: S311 - lots, not secrets
        for one, other in _candidates(usable, settings, lots):
            better, worse = (one, other) if one[1] >= other[1] else (other, one)
            if better[1] - worse[1] <= settings.min_margin:
                dropped["tie"] += 1
                continue
            others = [score for score in group.scores if score is not None] if win_against == "average" else None
            pairs.append(_pair(group, better, worse, others, round_))
    return pairs, {cause: dropped[cause] for cause in CAUSES}


def make_groups(groups: Iterable[Group], settings: Pairing) -> tuple[list[Group], dict[str, int]]:
    """The usable responses of scored ``groups``, for losses over K responses, and what was dropped by cause.

    Counts as ``make_pairs``, but for ties: responses of equal score stay, since a loss over K responses
    learns from those too. Neither the rule nor the least margin of ``settings`` is read.
    """
    dropped: Counter[str] = Counter()
    kept: list[Group] = []
    for group in groups:
        usable = _usable(group, settings, dropped)
        if len(usable) < 2:
            dropped["too_few"] += 1
            continue
        responses, scores = zip(*usable, strict=True)
        kept.append(replace(group, responses=responses, scores=scores))
    return kept, {cause: dropped[cause] for cause in CAUSES if cause != "tie"}


def win_probability(reward: float, rewards: Sequence[float]) -> float:
    """P(a response of ``reward`` beats the policy's average answer), from the ``rewards`` of the K that were drawn.

    The mean over the K of σ(r − r_j), the response itself among them (SPPO, arXiv:2405.00675, section 4; there a
    pairwise model gives each probability, here it is Bradley and Terry's of the scorer's values).
    """
    return sum(sigmoid(reward - other) for other in rewards) / len(rewards)


def sigmoid(value: float) -> float:
    """1 / (1 + e^-value)."""
    # e^-|value| cannot overflow.
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)


def win_probabilities(chosen: float, rejected: float, rewards: Sequence[float] | None) -> tuple[float, float]:
    """Of two rewards, each against the average of ``rewards``, or against the other (None)."""
    if rewards is None:
        wins = sigmoid(chosen - rejected)
        return wins, 1 - wins
    return win_probability(chosen, rewards), win_probability(rejected, rewards)


def _pair(group: Group, better: Scored, worse: Scored, rewards: Sequence[float] | None, round_: int) -> Pair:
    wins, wins_rejected = win_probabilities(better[1], worse[1], rewards)
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


def _usable(group: Group, settings: Pairing, dropped: Counter[str]) -> list[Scored]:
    usable: list[Scored] = []
    seen: set[tuple[int, ...] | tuple[str, str]] = set()
    for response, score in zip(group.responses, group.scores, strict=True):
        if settings.drop_cut and response.finish_reason == "length":
            dropped["cut"] += 1
        elif not response.text.strip():
            dropped["empty"] += 1
        elif score is None:
            dropped["missing_label"] += 1
        elif not seen.isdisjoint(same := (response.token_ids, (response.text, response.finish_reason))):
            # One text can be drawn as several token sequences: nobody could prefer one of them.
            dropped["identical"] += 1
        else:
            seen.update(same)
            usable.append((response, score))
    return usable


def _candidates(usable: list[Scored], settings: Pairing, lots: random.Random) -> Iterator[tuple[Scored, Scored]]:
    if settings.rule == "all":
        yield from combinations(usable, 2)
    elif settings.rule == "random":
        one, other = lots.sample(usable, 2)
        yield one, other
    else:
        shuffled = lots.sample(usable, len(usable))
        yield max(shuffled, key=lambda item: item[1]), min(shuffled, key=lambda item: item[1])
