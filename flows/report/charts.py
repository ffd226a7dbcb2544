"""Histograms of columns that need not fit in memory. Torch-free."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.storage.parquet.tables import read_columns

_BINS = 10
# As in ``losses.dispersion``.
_SMALLEST_ENTROPY = 1e-6
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values lie in [edges[i], edges[i + 1]), the last bin closed; no bins if there were no values."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


EMPTY = Histogram((), ())


def histogram(values: Sequence[float], bins: int = _BINS) -> Histogram:
    """Return ``bins`` bins of equal width between the least and the largest value; a single bin if these are equal."""
    return streamed_histogram(lambda: [np.asarray(values, dtype=np.float64)], bins)


def streamed_histogram(read: Callable[[], Iterable[Values]], bins: int = _BINS) -> Histogram:
    """The histogram of blocks from ``read``, which is called twice. NaN is left out."""
    low, high = np.inf, -np.inf
    for block in read():
        known = block[~np.isnan(block)]
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    if low > high:
        return EMPTY
    edges = np.linspace(low, high, bins + 1) if low < high else np.array([low, high])
    counts = np.zeros(max(len(edges) - 1, 1), dtype=np.int64)
    for block in read():
        known = block[~np.isnan(block)]
        # Not np.histogram: for a single value, its edges lie half a unit away.
        places = np.searchsorted(edges, known, side="right") - 1
        counts += np.bincount(places.clip(0, len(counts) - 1), minlength=len(counts))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def margin_histogram(file: Path, bins: int = _BINS) -> Histogram:
    """Score differences of a pairs stage: of pairs, or of the best and the worst response of groups."""
    names = set(pq.read_schema(file).names)
    if "chosen_score" in names:
        return streamed_histogram(lambda: map(_of_pairs, read_columns(file, ["chosen_score", "rejected_score"])), bins)
    if "scores" in names:
        return streamed_histogram(lambda: map(_of_groups, read_columns(file, ["scores"])), bins)
    return EMPTY


def dispersion_histogram(files: Sequence[Path], bins: int = _BINS) -> Histogram:
    """−log Hn of each row of a reference stage: d before its scale (MallowsPO, arXiv:2405.14953, section 3.3)."""

    def read() -> Iterable[Values]:
        for file in files:
            for block in read_columns(file, ["entropy"]):
                entropy = _numbers(block.column(0))
                yield -np.log(entropy.clip(_SMALLEST_ENTROPY, 1.0))

    return streamed_histogram(read, bins)


def _of_pairs(block: pa.RecordBatch) -> Values:
    return _numbers(block.column(0)) - _numbers(block.column(1))


def _of_groups(block: pa.RecordBatch) -> Values:
    known = [[score for score in scores if score is not None] for scores in block.column(0).to_pylist()]
    return np.array([max(scores) - min(scores) for scores in known if len(scores) > 1], dtype=np.float64)


def _numbers(column: pa.Array) -> Values:
    """The column as float64; nulls become NaN."""
    plain = column.cast(pa.float64())
    # pyarrow's own conversion imports pandas, which takes longer than all else that is shown.
    known, numbers = plain.buffers()
    if numbers is None:
        return np.full(len(plain), np.nan)
    part = slice(plain.offset, plain.offset + len(plain))
    values: Values = np.frombuffer(numbers, dtype=np.float64)[part]
    if known is None:
        return values
    there = np.unpackbits(np.frombuffer(known, dtype=np.uint8), bitorder="little")[part]
    return np.where(there, values, np.nan)


BLOCKS = "▁▂▃▄▅▆▇█"


def thinned(values: Sequence[float], points: int) -> list[float]:
    """Return ``values``, or if they are more than ``points``, the means of ``points`` stretches of them."""
    if len(values) <= points:
        return list(values)
    ends = [len(values) * place // points for place in range(points + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]


def sparkline(values: Sequence[float], points: int = 40) -> str:
    """One block per number: the least lowest, the largest highest, equal ones in the middle; a space if not finite."""
    shown = thinned(values, points)
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(value, low, high) for value in shown)


def bar(value: float, most: float, width: int = 30) -> str:
    """A bar of length ``width`` times ``value / most``; a thin bar for a small value above zero."""
    if value <= 0 or most <= 0:
        return ""
    return "█" * round(width * value / most) or "▏"


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    return BLOCKS[3] if low == high else BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))]
