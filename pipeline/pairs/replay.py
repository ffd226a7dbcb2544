"""What of earlier rounds is trained on again: how much of each, and which.

Ages are in rounds: 1 is the round before. A pool is what one earlier round made itself, without what it replayed.
"""

import random
from collections.abc import Mapping
from itertools import takewhile

from pipeline.config import Replay
from pipeline.types import derive_seed


def shares(own: int, settings: Replay) -> tuple[int, int]:
    """How many rows of earlier rounds, and of the data set, stand beside ``own`` rows of a round's own."""
    total = own / (1 - settings.share - settings.anchor)
    return round(settings.share * total), round(settings.anchor * total)


def ages_within_drift(drifts: Mapping[int, float], limit: float) -> list[int]:
    """Ages from 1 on, up to the first whose drift is above ``limit``; both in nats a token."""
    return [*takewhile(lambda age: drifts[age] <= limit, sorted(drifts))]


def draw(pools: Mapping[int, range], count: int, decay: float, seed: int, round_: int) -> dict[int, list[int]]:
    """Places of ``count`` rows in ``pools``, by lot without repeats, age a weighed by ``decay`` to the power a.

    A pool that has less than its part gives all, and the others make it up; fewer are drawn if there are fewer.
    Lots depend on ``seed``, ``round_`` and the age alone.
    """
    drawn: dict[int, list[int]] = {}
    for age, part in _parts({age: len(pool) for age, pool in pools.items() if pool}, count, decay).items():
        lots = random.Random(derive_seed("replay", seed, round_, age))  # noqa: S311 - lots, not secrets
        drawn[age] = sorted(lots.sample(pools[age], part))
    return drawn


def _parts(sizes: Mapping[int, int], count: int, decay: float) -> dict[int, int]:
    """Rows of each age, in ascending order of age: largest remainders of the weighed shares, within ``sizes``."""
    parts = dict.fromkeys(sorted(sizes), 0)
    left = min(count, sum(sizes.values()))
    while left:
        weights = {age: decay**age for age in parts if parts[age] < sizes[age]}
        total = sum(weights.values())
        wanted = {age: left * weight / total for age, weight in weights.items()}
        given = {age: min(int(wanted[age]), sizes[age] - parts[age]) for age in wanted}
        if not any(given.values()):
            # Less than one row a pool is left: one each, the largest remainders first.
            for age in sorted(wanted, key=lambda age: (-wanted[age], age))[:left]:
                given[age] = 1
        for age, more in given.items():
            parts[age] += more
        left -= sum(given.values())
    return parts
