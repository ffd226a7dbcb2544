"""Lines of numbers, shortened, and as charts of one line of text. Torch-free."""

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"


def thinned(values: Sequence[float], points: int) -> list[float]:
    """``values``, or the means of ``points`` stretches of them."""
    if len(values) <= points:
        return list(values)
    ends = [len(values) * place // points for place in range(points + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]


def sparkline(values: Sequence[float], points: int = 40) -> str:
    """A block a number, the least one lowest, the largest one highest; equal ones in the middle, others a space."""
    shown = thinned(values, points)
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(value, low, high) for value in shown)


def bar(value: float, most: float, width: int = 30) -> str:
    """A bar whose length is to ``width`` as ``value`` to ``most``; a thin one for what is little and not nothing."""
    if value <= 0 or most <= 0:
        return ""
    return "█" * round(width * value / most) or "▏"


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    return BLOCKS[3] if low == high else BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))]
