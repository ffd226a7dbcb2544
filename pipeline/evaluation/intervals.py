"""95 % intervals over prompts that hold their level with few prompts. Torch-free.

A percentile bootstrap misses the truth too often with 16 to 32 prompts, and gives [0, 0] for a rate that was 0 in all
of them. So rates get Wilson's interval, means and ratios a studentised bootstrap that is nowhere shorter than Student's
interval. Rows are prompts: several responses to one prompt are one row. tests/studies/coverage.py measures how often
each interval misses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError

Floats = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex128]
# From means of columns, [..., K] complex, to a statistic, [...]; analytic, since its gradient is a complex step.
Smooth = Callable[[Complexes], Complexes]

LEVEL = 0.95
# With fewer prompts a resample often holds only one of them, so that Student's t takes the place of the bootstrap.
FEWEST = 10
_TAIL = (1 + LEVEL) / 2
_Z = NormalDist().inv_cdf(_TAIL)
_STEP = 1e-30
# Sums of rewards that cancel leave rests of about 1e-17, which must not decide on which side of 0 an end lies.
_ROUNDING = 1e-12
_STILL = 1e-6
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval over prompts."""

    mean: float
    low: float
    high: float


def rate_interval(
    values: Sequence[float] | Floats,
    least: float = 0.0,
    most: float = 1.0,
    weights: Sequence[float] | Floats | None = None,
) -> Interval:
    """Return the mean of ``values`` (one per prompt, in [``least``, ``most``]) and its interval.

    ``weights``: how much each prompt counts, such as its number of answers; None: all alike.

    Wilson's score interval (1927) for as many prompts as a plain yes-or-no rate would need for the same spread: ties,
    and means over several responses to a prompt, vary less than yes or no. The spread is that of the values and of one
    more at each end, so that equal values do not give an interval of length 0.

    >>> even, none = rate_interval([1.0] * 8 + [0.0] * 8), rate_interval([0.0] * 16)
    >>> round(even.low, 3), round(even.high, 3), none.low, round(none.high, 3)
    (0.28, 0.72, 0.0, 0.194)

    Raises ``RunError`` if there are no values.
    """
    rates = (np.asarray(values, dtype=np.float64) - least) / (most - least)
    if not len(rates):
        raise RunError("nothing to average: no prompt has scores")
    shares = np.ones(len(rates)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = min(max(float(np.average(rates, weights=shares)), 0.0), 1.0)
    padded, shares = np.concatenate([rates, [0.0, 1.0]]), np.concatenate([shares, [shares.mean()] * 2])
    shares = shares / shares.mean()
    middle = float(np.average(padded, weights=shares))
    # As many prompts of equal weight as would leave the same standard error.
    count = len(rates) * middle * (1 - middle) / float(np.mean((shares * (padded - middle)) ** 2))
    z2 = _Z**2 / count
    centre = (mean + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(mean * (1 - mean) / count + z2 / count / 4) / (1 + z2)
    low, high = min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean)
    return Interval(*(least + (most - least) * value for value in (mean, low, high)))


def mean_interval(values: Sequence[float] | Floats, resamples: int, seed: int) -> Interval:
    """Return the mean of ``values`` (one per prompt, of any size) and its interval, as ``smooth_interval`` does."""
    return smooth_interval(np.asarray(values, dtype=np.float64)[:, None], lambda means: means[..., 0], resamples, seed)


def smooth_interval(columns: Floats, statistic: Smooth, resamples: int, seed: int) -> Interval:
    """Return ``statistic`` of the columns' means, and its studentised bootstrap interval (Efron 1981; Hall 1988).

    Resamples of prompts tell how (estimate − truth) / (standard error) is distributed, so that skewed values get an
    interval that is not symmetric. Each side is at least as long as Student's: where only a few prompts differ from the
    rest, resamples cannot show what a further one would do. Standard errors are those of the delta method.

    Args:
        columns: [N, K], one row per prompt. One prompt has no spread: both ends are then the estimate.
        statistic: its value may be NaN, in which case all three numbers are.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises ``RunError`` if there are no rows.
    """
    size = len(columns)
    if not size:
        raise RunError("nothing to average: no prompt has scores")
    means = columns.mean(axis=0)
    with np.errstate(all="ignore"):
        whole, error = _estimates(means[None], _covariance(columns - means)[None], size, statistic)
        estimate, own = float(whole[0]), float(error[0])
        if not math.isfinite(estimate) or not math.isfinite(own) or own == 0.0:
            return _around(estimate, 0.0, 0.0)
        least = student_t(_TAIL, size - 1)
        if size < FEWEST:
            return _around(estimate, least * own, least * own)
        ratios = _resampled(columns, statistic, resamples, seed, (estimate, own))
    left, right = np.quantile(ratios, [1 - _TAIL, _TAIL]) if len(ratios) else (-least, least)
    return _around(estimate, max(float(right), least) * own, max(-float(left), least) * own)


def _around(estimate: float, below: float, above: float) -> Interval:
    ends = (estimate, estimate - below, estimate + above)
    return Interval(*(0.0 if abs(end) < _ROUNDING else end for end in ends))


def student_t(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t: exact for one or two degrees of freedom, else by Cornish-Fisher's expansion.

    >>> [round(student_t(0.975, freedom), 2) for freedom in (1, 2, 3, 8)]  # tables: 12.71, 4.30, 3.18, 2.31
    [12.71, 4.3, 3.18, 2.31]
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return float(x + sum(term / freedom**power for power, term in enumerate(terms, 1)))


def _resampled(columns: Floats, statistic: Smooth, resamples: int, seed: int, whole: tuple[float, float]) -> Floats:
    """(Resample's statistic − estimate) / its standard error, without resamples that have none.

    ``whole``: the estimate and its standard error.
    """
    size, width = columns.shape
    rng, found = np.random.default_rng(seed), []
    means = columns.mean(axis=0)
    centred = columns - means
    products = (centred[:, :, None] * centred[:, None, :]).reshape(size, width * width)
    # Resamples as counts of each prompt, so that a chunk of them is one product of matrices.
    for start in range(0, resamples, _CHUNK):
        counts = rng.multinomial(size, np.full(size, 1 / size), size=min(_CHUNK, resamples - start)) / size
        shift = counts @ centred
        spread = (counts @ products).reshape(-1, width, width) - shift[:, :, None] * shift[:, None, :]
        values, errors = _estimates(means + shift, spread * size / (size - 1), size, statistic)
        ratios = (values - whole[0]) / errors
        # Equal values leave a standard error of rounding alone.
        found.append(ratios[np.isfinite(ratios) & (errors > _STILL * whole[1])])
    return np.concatenate(found)


def _estimates(means: Floats, spread: Floats, size: int, statistic: Smooth) -> tuple[Floats, Floats]:
    """The statistic at each row of ``means`` [R, K], and its standard error from ``spread`` [R, K, K]."""
    steps = 1j * _STEP * np.eye(means.shape[1])
    slopes = statistic(means[:, None, :] + steps).imag / _STEP
    variances = np.einsum("rj,rjk,rk->r", slopes, spread, slopes) / size
    return statistic(means.astype(np.complex128)).real, np.sqrt(np.maximum(variances, 0.0))


def _covariance(centred: Floats) -> Floats:
    """[K, K], with the sample's own correction for the estimated mean."""
    covariance: Floats = centred.T @ centred / max(len(centred) - 1, 1)
    return covariance
