"""Charts of one line."""

import math

import pytest

from flows.report.charts import bar, sparkline, thinned


def test_long_lines_become_means_of_stretches() -> None:
    assert thinned([1.0, 2.0], 400) == [1.0, 2.0]
    found = thinned([float(n) for n in range(4000)], 400)
    assert len(found) == 400 and found[0] == 4.5 and found[-1] == 3994.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 7.0, 3.0], "▁█▄"), ([2.0, 2.0], "▄▄"), ([1.0, math.nan, 2.0], "▁ █"), ([], ""), ([-1.0, -2.0], "█▁")],
)
def test_a_block_a_number(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_bars_are_in_proportion_and_little_is_seen() -> None:
    assert [len(bar(value, 10.0, 20)) for value in (10.0, 5.0, 0.01, 0.0)] == [20, 10, 1, 0]
