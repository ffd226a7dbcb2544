"""Histograms of columns, block by block."""

import math
from pathlib import Path

import numpy as np
import pytest

from flows.report.charts import EMPTY, dispersion_histogram, histogram, margin_histogram, streamed_histogram
from pipeline.storage.rows import REFERENCE, write_preferences, write_table
from pipeline.types import Group, Message, Pair, Prompt, Response, Unpaired

PROMPT = Prompt((Message("user", "p"),))


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
    file, said = tmp_path / "rows.parquet", Response("a", (1,), (), "stop")
    scored = ((2.0, 1.0), (3.0, 0.0), (None, 1.0))
    write_preferences(file, [Pair(PROMPT, (1,), said, said, *scores) for scores in scored])
    assert margin_histogram(file, 2).counts == (1, 1) and margin_histogram(file, 2).edges == (1.0, 2.0, 3.0)
    ranked = ((1.0, None, 4.0), (None, 2.0, None))
    write_preferences(file, [Group(PROMPT, (1,), (said, said, said), scores) for scores in ranked])
    assert margin_histogram(file) == histogram([3.0])
    write_preferences(file, [Unpaired(PROMPT, (1,), said, True)])
    assert margin_histogram(file) == EMPTY


def test_dispersion_is_the_negative_logarithm_of_the_entropy(tmp_path: Path) -> None:
    for number, entropies in enumerate(([1.0, 0.5], [0.0])):
        rows = [{"id": "x", "logps": [[-1.0]], "entropy": entropy} for entropy in entropies]
        write_table(tmp_path / f"shard_{number}.parquet", REFERENCE, rows)
    found = dispersion_histogram(sorted(tmp_path.glob("*.parquet")), 2)
    assert sum(found.counts) == 3 and found.edges[-1] == pytest.approx(-math.log(1e-6))
