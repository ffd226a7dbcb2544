"""Histograms of columns, block by block."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.report.charts import EMPTY, dispersion_histogram, histogram, margin_histogram, streamed_histogram


def test_blocks_make_the_histogram_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    blocks = np.array_split(values, 7)
    assert streamed_histogram(lambda: blocks, 12) == histogram(values.tolist(), 12)
    counts, edges = np.histogram(values, 12)
    found = histogram(values.tolist(), 12)
    assert found.counts == tuple(counts) and found.edges == pytest.approx(edges)


def test_nan_is_left_out_and_nothing_makes_no_bins() -> None:
    assert streamed_histogram(lambda: [np.array([math.nan, 1.0]), np.array([3.0])], 2).counts == (1, 1)
    assert streamed_histogram(lambda: [np.array([math.nan])]) == EMPTY


def test_margins_of_pairs_of_groups_and_of_single_responses(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"chosen_score": [2.0, 3.0, None], "rejected_score": [1.0, 0.0, 1.0]}), file)
    assert margin_histogram(file, 2).counts == (1, 1) and margin_histogram(file, 2).edges == (1.0, 2.0, 3.0)
    pq.write_table(pa.table({"scores": [[1.0, None, 4.0], [None, 2.0, None]]}), file)
    assert margin_histogram(file) == histogram([3.0])
    pq.write_table(pa.table({"desirable": [True]}), file)
    assert margin_histogram(file) == EMPTY


def test_dispersion_is_the_negative_logarithm_of_the_entropy(tmp_path: Path) -> None:
    for number, entropies in enumerate(([1.0, 0.5], [0.0])):
        pq.write_table(pa.table({"entropy": entropies}), tmp_path / f"shard_{number}.parquet")
    found = dispersion_histogram(sorted(tmp_path.glob("*.parquet")), 2)
    assert sum(found.counts) == 3 and found.edges[-1] == pytest.approx(-math.log(1e-6))
