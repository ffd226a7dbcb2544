"""Axes of a figure: their range, their ticks and how numbers are written. Torch-free."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Numbers that differ by rounding alone; the largest that is drawn, and the smallest range.
_SAME, _MOST, _LEAST = 1e-9, 1e300, 1e-290
_MOST_DECIMALS = 12
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
# Share of the range that is left free at each end of the vertical axis.
_FREE = 0.06


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers from ``low`` to ``high``, with a tick at each multiple of ``step``."""

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Where ``value`` lies: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Multiples of ``step`` between the ends."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return tuple(number * self.step for number in range(first, last + 1))


def can_be_drawn(value: float) -> bool:
    """Return whether a number has a place on an axis: neither NaN nor near the largest number that there is."""
    return abs(value) <= _MOST


def scale(values: Iterable[float], ticks: int = 6, free: float = _FREE, whole: bool = False) -> Scale:
    """An axis that shows all finite ``values``, with at most about ``ticks`` ticks.

    Args:
        values: numbers to be shown; those that cannot be drawn are left out.
        ticks: their number at most.
        free: share of the range that stays free at each end.
        whole: ticks are whole numbers.
    """
    finite = [value for value in values if can_be_drawn(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if high - low <= _SAME * max(abs(low), abs(high)):
        # Around a single value, from 0, so that a constant does not look like a change.
        low, high = (low - 0.5, high + 0.5) if whole else (min(low, 0.0), max(high, 0.0))
    if high - low < _LEAST:
        low, high = -1.0, 1.0
    room = (high - low) * free
    low, high = low - room, high + room
    least = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * one for one in _STEPS if power * one >= least * (1 - 1e-9))
    return Scale(low, high, max(1.0, math.ceil(step)) if whole else step)


def tick_text(value: float, step: float, form: str = "") -> str:
    """``value`` as a tick's label, with as many decimals as tell it from its neighbours.

    Args:
        value: a multiple of ``step``.
        step: the distance of ticks.
        form: a format such as ``.0%`` or ``.1e``; empty: a plain number.
    """
    value = 0.0 if abs(value) < step * 1e-6 else value
    if form.endswith("%"):
        return _signed(f"{value:.{_decimals(step * 100)}%}")
    if form.endswith("e") or not (step >= 1e-4 and abs(value) < 1e6):
        return _signed(f"{value:.1e}" if value else "0")
    return _signed(f"{value:,.{_decimals(step)}f}")


def _decimals(step: float) -> int:
    """The decimals of multiples of ``step``; 2.5 needs one more than 2."""
    fitting = (count for count in range(_MOST_DECIMALS) if abs(round(step, count) - step) < step * 1e-6)
    return next(fitting, _MOST_DECIMALS)


def _signed(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") else text
