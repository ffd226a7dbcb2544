"""Held-out prompts that got worse since the start: how many, by how much, and what they have in common. Torch-free."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.evaluation.intervals import Interval, rate_interval

# Fewest prompts that share a trait worth telling, most sources that are compared, and most examples.
_FEWEST, _SOURCES, _EXAMPLES = 5, 8, 10


@dataclass(frozen=True, slots=True)
class PromptChange:
    """One held-out prompt: its mean reward, or margin of its pairs, at the start (``before``) and in a round.

    ``letters``: its length; ``turns``: those of the user.
    """

    prompt: str
    before: float
    after: float
    letters: int
    turns: int
    source: str

    @property
    def change(self) -> float:
        """What the prompt gained."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class SharedTrait:
    """A trait, the prompts that have it, and the share of them that got worse, against that of all others.

    ``stands_out``: the intervals of the two shares do not meet, and the prompts with the trait do worse.
    """

    name: str
    prompts: int
    worse: Interval
    others: Interval
    change: float
    stands_out: bool


@dataclass(frozen=True, slots=True)
class WorsePrompts:
    """What became of the held-out prompts by ``round``.

    Attributes:
        measure: ``reward`` or ``margin``.
        prompts: how many were compared; ``worse`` and ``better`` of them changed.
        fall: mean over the worse ones, above 0; 0 if there are none.
        traits: each with enough prompts inside and outside.
        examples: those that fell most, the worst first.
    """

    round: int
    measure: str
    prompts: int
    worse: int
    better: int
    fall: float
    traits: tuple[SharedTrait, ...]
    examples: tuple[PromptChange, ...]

    @property
    def sentences(self) -> str:
        """The answer in words."""
        if not self.worse:
            return f"None of {self.prompts} held-out prompts has a lower {self.measure} than at the start."
        share = f"{self.worse} of {self.prompts} held-out prompts ({self.worse / self.prompts:.0%})"
        told = (
            f"{share} {'has' if self.worse == 1 else 'have'} a lower {self.measure} in round {self.round} than at the "
            f"start, by {self.fall:.3g} on average; {self.better} {'has' if self.better == 1 else 'have'} a higher one."
        )
        found = [
            f"{trait.name}: {trait.worse.mean:.0%} got worse, of the others {trait.others.mean:.0%}"
            for trait in self.traits
            if trait.stands_out
        ]
        if found:
            return f"{told} What they have in common: {'; '.join(found)}."
        looked = "No length, number of turns or source" if self.traits else "There are too few to tell what"
        return f"{told} {looked} {'stands out' if self.traits else 'they have in common'}."


def worse_prompts(changes: Sequence[PromptChange], round_: int, measure: str) -> WorsePrompts | None:
    """The prompts that got worse by ``round_``; None without prompts. ``measure``: reward or margin."""
    if not changes:
        return None
    worse = sorted((one for one in changes if one.change < 0), key=lambda one: one.change)
    return WorsePrompts(
        round_,
        measure,
        len(changes),
        len(worse),
        sum(one.change > 0 for one in changes),
        -sum(one.change for one in worse) / max(len(worse), 1),
        tuple(_traits(changes)),
        tuple(worse[:_EXAMPLES]),
    )


def _traits(changes: Sequence[PromptChange]) -> Iterator[SharedTrait]:
    for name, has in (*_lengths(changes), *_turns(changes), *_sources(changes)):
        inside, outside = [one for one in changes if has(one)], [one for one in changes if not has(one)]
        if min(len(inside), len(outside)) >= _FEWEST:
            ours, others = (rate_interval([float(one.change < 0) for one in side]) for side in (inside, outside))
            change = sum(one.change for one in inside) / len(inside)
            yield SharedTrait(name, len(inside), ours, others, change, ours.low > others.high)


_Traits = Iterator[tuple[str, Callable[[PromptChange], bool]]]


def _lengths(changes: Sequence[PromptChange]) -> _Traits:
    """The shortest, the middle and the longest third."""
    low, high = (float(end) for end in np.quantile([one.letters for one in changes], [1 / 3, 2 / 3]))
    if low < high:
        yield f"up to {low:,.0f} letters", lambda one: one.letters <= low
        yield f"{low:,.0f} to {high:,.0f} letters", lambda one: low < one.letters <= high
        yield f"over {high:,.0f} letters", lambda one: one.letters > high


def _turns(changes: Sequence[PromptChange]) -> _Traits:
    if len({one.turns for one in changes}) > 1:
        yield "one turn", lambda one: one.turns <= 1
        yield "two turns", lambda one: one.turns == 2
        yield "three or more turns", lambda one: one.turns > 2


def _sources(changes: Sequence[PromptChange]) -> _Traits:
    found = Counter(one.source for one in changes)
    for source, _ in found.most_common(_SOURCES) if len(found) > 1 else ():
        yield f"source {source or 'not named'}", partial(_from, source)


def _from(source: str, one: PromptChange) -> bool:
    return one.source == source
