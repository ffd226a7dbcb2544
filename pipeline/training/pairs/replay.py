"""Choose rows of earlier rounds to train on again: how many of each round, and which.

Ages are in rounds: 1 is the round before. A pool holds the rows that one earlier round made itself, without replay.
"""

import random
from collections.abc import Mapping
from itertools import takewhile

from pipeline.config import Replay
from pipeline.types import derive_seed


def shares(own: int, settings: Replay) -> tuple[int, int]:
    """Return how many rows of earlier rounds, and of the data set, go with ``own`` new rows of a round."""
    total = own / (1 - settings.share - settings.anchor)
    return round(settings.share * total), round(settings.anchor * total)


def ages_within_drift(drifts: Mapping[int, float], limit: float) -> list[int]:
    """Return the ages from 1 up to, but without, the first with a drift above ``limit``; both in nats per token."""
    return [*takewhile(lambda age: drifts[age] <= limit, sorted(drifts))]


def draw(pools: Mapping[int, range], count: int, decay: float, seed: int, round_: int) -> dict[int, list[int]]:
    """Draw the places of ``count`` rows in ``pools`` at random, without repeats; age a has weight ``decay`` ** a.

    A pool smaller than its part gives all its rows, and the others make up the rest; fewer rows are drawn if there are
    fewer. The draws depend only on ``seed``, ``round_`` and the age.
    """
    drawn: dict[int, list[int]] = {}
    for age, part in _parts({age: len(pool) for age, pool in pools.items() if pool}, count, decay).items():
        lots = random.Random(derive_seed("replay", seed, round_, age))  # noqa: S311 - random draws, not secrets
        drawn[age] = sorted(lots.sample(pools[age], part))
    return drawn


def _parts(sizes: Mapping[int, int], count: int, decay: float) -> dict[int, int]:
    """Split ``count`` by age, in ascending order: largest remainders of the weighted shares, within ``sizes``."""
    parts = dict.fromkeys(sorted(sizes), 0)
    left = min(count, sum(sizes.values()))
    while left:
        weights = {age: decay**age for age in parts if parts[age] < sizes[age]}
        total = sum(weights.values())
        wanted = {age: left * weight / total for age, weight in weights.items()}
        given = {age: min(int(wanted[age]), sizes[age] - parts[age]) for age in wanted}
        if not any(given.values()):
            # Less than one row per pool is left: one each, the largest remainders first.
            for age in sorted(wanted, key=lambda age: (-wanted[age], age))[:left]:
                given[age] = 1
        for age, more in given.items():
            parts[age] += more
        left -= sum(given.values())
    return parts
