"""The image quickstart's data: 8 x 8 pictures of one dot, 3 x 3 pixels of a colour, in the upper or the lower half.

A condition asks for a colour and a half; the pictures that a model first learns from have both at known rates, so that
it draws clean dots that are often not the ones asked for. Torch-free.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.config.data.sources import DotPairs, DotsData
from pipeline.types import Message, Prompt, derive_seed

Picture = NDArray[np.uint8]
SIDE, DOT = 8, 3
DOT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
}
DOT_HALVES = ("upper", "lower")
DOT_CONDITIONS = tuple(f"a {colour} dot in the {half} half" for colour in DOT_COLOURS for half in DOT_HALVES)
# Root mean square of the difference from a perfect picture, of channels from 0 to 1, up to which a dot is clean.
CLEAN = 0.08
# Of a faded dot: how much of its colour is left, and the deviation of the noise on it, of 255.
_LEFT, _NOISE = (0.4, 0.8), 30.0


@dataclass(frozen=True, slots=True)
class DotMarks:
    """What is right about a picture: the colour and the half that were asked for, and the shape."""

    colour: bool
    half: bool
    clean: bool

    @property
    def all_right(self) -> bool:
        """Whether nothing is wrong."""
        return self.colour and self.half and self.clean


def dot_prompts(settings: DotsData) -> Iterator[Prompt]:
    """Yield the prompts, each condition in turn; ``answer`` is the number of the condition."""
    repeats = -(-settings.prompts // len(DOT_CONDITIONS))
    return islice(condition_prompts(DOT_CONDITIONS, repeats), settings.prompts)


def condition_prompts(names: Sequence[str], repeats: int) -> Iterator[Prompt]:
    """Yield each of ``names`` with a number, ``repeats`` times; ``answer`` is the place of the name."""
    for number in range(1, repeats + 1):
        for place, name in enumerate(names):
            yield Prompt((Message("user", f"{name}, picture {number}"),), "conditions", answer=str(place))


def dot_pictures(settings: DotsData) -> Iterator[tuple[int, Picture]]:
    """Yield conditions and pictures that are meant to show them, as the labels' reliability has it."""
    lots = random.Random(derive_seed("dots", settings.seed))  # noqa: S311 - draws, not secrets
    for number in range(settings.pictures):
        condition = number % len(DOT_CONDITIONS)
        yield condition, _drawn(condition, settings, lots)


def dot_comparisons(settings: DotPairs) -> Iterator[tuple[Prompt, Picture, Picture]]:
    """Yield each prompt of the task with a better and a worse picture, exchanged in the share ``wrong``."""
    seed = derive_seed("dot pairs", settings.seed)
    lots, noise = random.Random(seed), np.random.default_rng(seed)  # noqa: S311 - draws, not secrets
    for prompt in dot_prompts(DotsData(prompts=settings.pairs)):
        condition = int(prompt.answer or 0)
        better = worse = 0.0
        while better == worse:
            one, other = (_shown(condition, settings, lots, noise) for _ in range(2))
            better, worse = _merit(one, condition), _merit(other, condition)
        swapped = (better < worse) != (lots.random() < settings.wrong)
        yield (prompt, other, one) if swapped else (prompt, one, other)


def _merit(picture: Picture, condition: int) -> float:
    marks = dot_marks(picture, condition)
    return marks.colour + marks.half + 0.5 * marks.clean


def _shown(condition: int, settings: DotPairs, lots: random.Random, noise: np.random.Generator) -> Picture:
    picture = _drawn(condition, settings, lots)
    if lots.random() >= settings.faded:
        return picture
    shown = picture * lots.uniform(*_LEFT) + noise.normal(0.0, _NOISE, picture.shape)
    return np.clip(shown, 0, 255).astype(np.uint8)


def _drawn(condition: int, settings: DotsData | DotPairs, lots: random.Random) -> Picture:
    colour, half = divmod(condition, len(DOT_HALVES))
    if lots.random() >= settings.colour:
        colour = lots.choice([other for other in range(len(DOT_COLOURS)) if other != colour])
    if lots.random() >= settings.half:
        half = 1 - half
    # A dot lies whole in its half, of four rows.
    top = half * (SIDE // 2) + lots.randrange(SIDE // 2 - DOT + 1)
    return dot_picture(colour, top, lots.randrange(SIDE - DOT + 1))


def dot_picture(colour: int, top: int, left: int) -> Picture:
    """A perfect picture, [8, 8, 3]."""
    picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    picture[top : top + DOT, left : left + DOT] = [*DOT_COLOURS.values()][colour]
    return picture


def dot_marks(picture: Picture, condition: int) -> DotMarks:
    """Compare a picture with the perfect one that is nearest to it, and with what was asked for."""
    shown = picture.astype(np.float64) / 255
    errors = ((shown - _PERFECT) ** 2).mean(axis=(1, 2, 3))
    nearest = int(np.argmin(errors))
    colour, place = divmod(nearest, (SIDE - DOT + 1) ** 2)
    top = place // (SIDE - DOT + 1)
    asked_colour, asked_half = divmod(condition, len(DOT_HALVES))
    half = 0 if top + DOT <= SIDE // 2 else 1 if top >= SIDE // 2 else None
    return DotMarks(colour == asked_colour, half == asked_half, bool(errors[nearest] <= CLEAN**2))


_PERFECT = np.stack(
    [
        dot_picture(colour, top, left).astype(np.float64) / 255
        for colour in range(len(DOT_COLOURS))
        for top in range(SIDE - DOT + 1)
        for left in range(SIDE - DOT + 1)
    ]
)
