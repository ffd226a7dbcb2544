"""Which comparisons are bought from the gold labeller, which of them are held out, and what they say of a model.

A comparison is a group of two responses; scored, it is gold.
"""

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pipeline.types import Group, Response, derive_seed

Selection = Literal["random", "uncertain", "disagreement"]


def comparison_of(group: Group, seed: int, round_: int) -> Group | None:
    """Two responses of ``group`` by lot that differ in text and tokens, without scores; None where there are none.

    Lots depend on ``seed``, ``round_`` and the prompt alone.
    """
    distinct: list[Response] = []
    for response in group.responses:
        alike = any(response.text == other.text or response.token_ids == other.token_ids for other in distinct)
        if response.text.strip() and not alike:
            distinct.append(response)
    if len(distinct) < 2:
        return None
    lots = random.Random(derive_seed("gold", seed, round_, group.prompt.id))  # noqa: S311 - lots, not secrets
    return replace(group, responses=tuple(lots.sample(distinct, 2)), scores=())


def choose_comparisons(
    comparisons: Sequence[Group],
    budget: int,
    rule: Selection,
    margins: Sequence[Sequence[float]],
    seed: int,
    round_: int,
) -> list[Group]:
    """At most ``budget`` of ``comparisons``, in their order.

    ``uncertain`` takes those of the smallest absolute mean margin, ``disagreement`` those of the largest standard
    deviation. ``margins`` holds, for each comparison, the score difference under each member of the discriminator.
    Lots decide between equals.
    """
    lots = random.Random(derive_seed("gold budget", seed, round_))  # noqa: S311 - lots, not secrets
    order = lots.sample(range(len(comparisons)), len(comparisons))
    match rule:
        case "uncertain":
            order.sort(key=lambda index: abs(statistics.fmean(margins[index])))
        case "disagreement":
            order.sort(key=lambda index: -statistics.pstdev(margins[index]))
        case "random":
            pass
    return [comparisons[index] for index in sorted(order[:budget])]


def held_out(gold: Group, share: float, seed: int) -> bool:
    """Whether a comparison is kept from every refit: by prompt, so that no round trains on what another measures."""
    return derive_seed("held-out gold", seed, gold.prompt.id) < share * 2**31


def gold_accuracy(gold: Iterable[Group], margins: Iterable[float]) -> tuple[float | None, int]:
    """Share of the comparisons that ``margins`` (first response's score less the second's) rank as gold does.

    Ties and missing labels of gold are left out; a margin of 0 is half right. Returns the share, None if nothing was
    left, and of how many.
    """
    right = []
    for group, margin in zip(gold, margins, strict=True):
        first, second = group.scores
        if first is not None and second is not None and first != second:
            right.append(0.5 if margin == 0 else float((margin > 0) == (first > second)))
    return (sum(right) / len(right) if right else None), len(right)


def passes(accuracy: float | None, compared: int, least: float, least_compared: int) -> str | None:
    """Why a version may not label; None if it may."""
    if compared < least_compared or accuracy is None:
        return f"{compared} held-out comparisons cannot tell; at least {least_compared}"
    if accuracy < least:
        return f"ranks {accuracy:.1%} of {compared} held-out comparisons rightly; at least {least:.0%}"
    return None
