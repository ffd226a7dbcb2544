"""How often the 95 % intervals miss on either side, at few prompts, beside the percentile bootstrap.

Each case draws data whose true value is known, many times over. A side of a good interval misses in 2.5 % of them. A
rate of few prompts has few possible values, so that no interval can hold every true rate at exactly 2.5 %.

    python -m tests.studies.coverage --draws 2000 --record
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.evaluation.equal_length import equal_length_rate, equal_length_wins
from pipeline.evaluation.intervals import Floats, Interval, mean_interval, rate_interval, smooth_interval

RESULTS = Path(__file__).with_name("RESULTS.md")
RESAMPLES = 300
Draw = Callable[[np.random.Generator, int], Floats]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True)
class Case:
    """Data of N prompts, [N, K]; the interval to judge; the statistic that it is of, for the percentile bootstrap."""

    name: str
    size: int
    draw: Draw
    interval: Callable[[Floats], Interval]
    statistic: Statistic
    quick: bool = False

    def truth(self) -> float:
        """The statistic of very many prompts."""
        return self.statistic(self.draw(np.random.default_rng(99), 400_000))


@dataclass(frozen=True)
class Misses:
    """Shares of the intervals that lie below, and above, the true value, and their mean length."""

    below: float
    above: float
    length: float


def missed(case: Case, draws: int, seed: int, percentile: bool = False) -> Misses:
    """Draw, and count."""
    rng, truth = np.random.default_rng(seed), case.truth()
    found = [_percentile(case, data, rng) if percentile else case.interval(data) for data in _drawn(case, draws, rng)]
    below = sum(one.high < truth for one in found) / draws
    above = sum(one.low > truth for one in found) / draws
    return Misses(below, above, sum(one.high - one.low for one in found) / draws)


def _drawn(case: Case, draws: int, rng: np.random.Generator) -> list[Floats]:
    return [case.draw(rng, case.size) for _ in range(draws)]


def _percentile(case: Case, data: Floats, rng: np.random.Generator) -> Interval:
    """What prefloop 0.1 gave."""
    rows = rng.integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile([case.statistic(data[some]) for some in rows], [2.5, 97.5])
    return Interval(case.statistic(data), float(low), float(high))


def yes_or_no(rate: float, ties: float = 0.0) -> Draw:
    """Wins, losses and ties by prompt."""

    def draw(rng: np.random.Generator, size: int) -> Floats:
        won = (rng.random(size) < rate).astype(np.float64)
        return np.where(rng.random(size) < ties, 0.5, won)[:, None]

    return draw


def repeated(lead: float, responses: int) -> Draw:
    """Win rates over all pairs of several responses a side, where prompts differ from each other."""

    def draw(rng: np.random.Generator, size: int) -> Floats:
        ours, theirs = (0.7 * rng.normal(size=(size, 1)) + rng.normal(size=(size, responses)) for _ in range(2))
        return (ours[:, :, None] + lead > theirs[:, None, :]).mean(axis=(1, 2))[:, None]

    return draw


def kl_rows(rng: np.random.Generator, size: int) -> Floats:
    """Nats and tokens by prompt, four responses to each: the divergence differs by prompt, and is skewed."""
    lengths = rng.integers(5, 60, size=(size, 4))
    rates = rng.gamma(1.5, 0.2, size=(size, 1))
    nats = rates * lengths + 0.3 * rng.normal(size=(size, 4)) * np.sqrt(lengths)
    return np.stack([nats.sum(1), lengths.sum(1)], axis=1)


def reward_changes(rng: np.random.Generator, size: int) -> Floats:
    """Changes of a reward that counts slots, minus a small cost of length."""
    slots = rng.choice([0.0, -1.0, 1.0, -2.0, 3.0], p=[0.5, 0.2, 0.2, 0.05, 0.05], size=size)
    return (slots + 0.1 * rng.normal(size=size))[:, None]


def sparse_changes(rng: np.random.Generator, size: int) -> Floats:
    """Changes of a reward that counts, where nearly all prompts keep theirs."""
    return rng.choice([-1.0, 0.0, 1.0], p=[0.03, 0.94, 0.03], size=size)[:, None]


def lengths(rng: np.random.Generator, size: int) -> Floats:
    """Tokens of either side."""
    shared = rng.integers(5, 60, size=size)
    return np.stack([shared * rng.lognormal(0.3, 0.4, size=size), shared * rng.lognormal(0, 0.4, size=size)], axis=1)


def by_length(level: float, slope: float, shift: float) -> Draw:
    """Wins that depend on the difference in tokens."""

    def draw(rng: np.random.Generator, size: int) -> Floats:
        longer = rng.normal(shift, 1, size=size)
        chance = 1 / (1 + np.exp(-(level + slope * np.tanh(longer))))
        return np.stack([(rng.random(size) < chance).astype(np.float64), 8 * longer], axis=1)

    return draw


def _mean(data: Floats) -> float:
    return float(data[:, 0].mean())


def _ratio(data: Floats) -> float:
    return float(data[:, 0].sum() / data[:, 1].sum())


def _ratio_interval(data: Floats) -> Interval:
    return smooth_interval(data, lambda means: means[..., 0] / means[..., 1], RESAMPLES, 0)


def _equal_length(data: Floats) -> float:
    return equal_length_rate(data[:, 0], data[:, 1])


def _rates() -> list[Case]:
    kinds = {
        "win rate 50 %": yes_or_no(0.5),
        "win rate 80 %": yes_or_no(0.8),
        "win rate 60 %, 40 % ties": yes_or_no(0.6, 0.4),
        "win rate 60 %, 90 % ties": yes_or_no(0.6, 0.9),
        "win rate, 4 responses a side": repeated(0.4, 4),
        "rate 3 %": yes_or_no(0.03),
    }
    return [
        Case(f"{name}, {size} prompts", size, draw, lambda data: rate_interval(data[:, 0]), _mean, size == 16)
        for name, draw in kinds.items()
        for size in (16, 32, 64)
    ]


def _others() -> list[Case]:
    cases = []
    for size in (16, 30, 100):
        cases += [
            Case(f"KL, 4 responses a prompt, {size}", size, kl_rows, _ratio_interval, _ratio, size == 30),
            Case(f"length ratio, {size}", size, lengths, _ratio_interval, _ratio, size == 30),
            Case(
                f"reward change, {size}",
                size,
                reward_changes,
                lambda data: mean_interval(data[:, 0], RESAMPLES, 0),
                _mean,
                size == 30,
            ),
            Case(
                f"reward change of 6 % of prompts, {size}",
                size,
                sparse_changes,
                lambda data: mean_interval(data[:, 0], RESAMPLES, 0),
                lambda data: round(_mean(data), 3),
                size == 30,
            ),
        ]
    for level, slope, shift in ((0.0, 1.0, 0.0), (1.5, 1.0, 0.7), (2.5, 1.0, 0.7)):
        cases += [
            Case(
                f"length-controlled {1 / (1 + np.exp(-level)):.0%}, {size}",
                size,
                by_length(level, slope, shift),
                lambda data: equal_length_wins(data[:, 0], data[:, 1]),
                _equal_length,
            )
            for size in (30,)
        ]
    return cases


CASES = (*_rates(), *_others())


def table(draws: int) -> str:
    """One line a case, in Markdown."""
    lines = [
        "| case | true | below | above | length | bootstrap: below | above | length |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in CASES:
        # The regression takes long, so that its bootstrap gets fewer draws.
        fewer = draws // 20 if case.name.startswith("length-controlled") else draws // 4
        ours, old = missed(case, draws, 0), missed(case, fewer, 1, percentile=True)
        cells = [f"{share:.1%}" for share in (ours.below, ours.above)], [f"{s:.1%}" for s in (old.below, old.above)]
        lines.append(
            f"| {case.name} | {case.truth():.3f} | {' | '.join(cells[0])} | {ours.length:.3f} "
            f"| {' | '.join(cells[1])} | {old.length:.3f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Draw, tabulate."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--draws", type=int, default=2000)
    options.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    given = options.parse_args()
    found = table(given.draws)
    if given.record:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        with RESULTS.open("a") as file:
            file.write(f"\n## {when}\n\n`python -m tests.studies.coverage --draws {given.draws}`\n\n{found}\n")


if __name__ == "__main__":
    main()
