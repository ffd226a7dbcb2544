"""Bootstrap intervals over groups of rows. Torch-free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError

Rows = npt.NDArray[np.intp]


Statistic = Callable[[Rows], float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """Return the mean of ``values`` (one per prompt) and its bootstrap 2.5 and 97.5 percentiles (Efron 1979).

    Raises ``RunError`` if there are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    return bootstrap_of(lambda rows: float(data[rows].mean()), len(data), resamples, seed)


def bootstrap_of(statistic: Statistic, size: int, resamples: int, seed: int) -> Interval:
    """Return ``statistic`` of all rows, and its 2.5 and 97.5 percentiles over resamples.

    Args:
        statistic: maps the drawn row numbers to a number or NaN; rows may be drawn twice.
        size: number of rows, one per prompt.

    Raises ``RunError`` if there are no rows.
    """
    if not size:
        raise RunError("nothing to average: no prompt has scores")
    rng = np.random.default_rng(seed)
    # One resample at a time keeps memory at the size of the data.
    drawn = np.array([statistic(rng.integers(size, size=size)) for _ in range(resamples)])
    known = drawn[~np.isnan(drawn)]
    whole = statistic(np.arange(size))
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (whole, whole)
    return Interval(whole, float(low), float(high))
