"""Figures show the numbers that they were given, where they belong."""

import itertools
import math
import re

import pytest

from flows.report.charts import Histogram
from flows.report.html.drawing.axes import scale, tick_text
from flows.report.html.drawing.bars import MOST_BARS, bars_figure
from flows.report.html.drawing.figures import ALL_POINTS, POINTS, Level, Line, histogram_figure, lines_figure
from flows.report.html.drawing.frame import HEIGHT, definitions


def ticks(figure: str, side: str) -> list[str]:
    return re.findall(rf'<text class="{side}"[^>]*>([^<]*)<', figure)


@pytest.mark.parametrize(
    ("low", "high", "form", "texts"),
    [
        (0.0, 1.0, ".0%", ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (0.5, 0.51, ".0%", ["50.0%", "50.2%", "50.4%", "50.6%", "50.8%", "51.0%"]),
        (-0.5, 0.5, "", ["−0.4", "−0.2", "0.0", "0.2", "0.4"]),
        (0.0, 4e-5, ".1e", ["0", "1.0e-05", "2.0e-05", "3.0e-05", "4.0e-05"]),
        (0.0, 5e7, "", ["0", "1.0e+07", "2.0e+07", "3.0e+07", "4.0e+07", "5.0e+07"]),
    ],
)
def test_ticks_are_round_numbers_that_differ(low: float, high: float, form: str, texts: list[str]) -> None:
    found = scale([low, high, math.nan])
    assert [tick_text(tick, found.step, form) for tick in found.ticks] == texts
    assert 0.0 < found.place(low) < 0.1 and 0.9 < found.place(high) < 1.0


def test_rounds_are_whole_numbers_and_a_constant_is_shown_from_zero() -> None:
    assert scale([0, 3], whole=True, free=0.0).ticks == (0, 1, 2, 3)
    assert scale([7, 7], whole=True, free=0.0).ticks == (7,)
    assert scale([20.0, 20.0]).low < 0 < 20 < scale([20.0]).high
    assert scale([]).ticks and scale([math.inf, 0.0]).ticks


def test_a_line_has_its_points_marks_and_numbers() -> None:
    figure = lines_figure([Line("a & b", [0, 1], [0.25, 0.75], 1)], x_title="round", y_format=".0%", level=0.5)
    assert 'data-name="a &amp; b" data-x="0 1" data-y="0.25 0.75"' in figure
    heights = [float(y) for y in re.findall(r'<use href="#m1" class="c1" x="[^"]*" y="([^"]*)"/>', figure)]
    assert len(heights) == 2 and heights[0] > HEIGHT / 2 > heights[1]
    assert re.search(rf'<line class="level" x2="100%" y1="{HEIGHT / 2:.1f}"', figure)
    assert "30%" in ticks(figure, "up") and 'class="legend"' not in figure
    assert 'id="m5"' in definitions() and 'id="m6"' not in definitions()


def test_a_line_breaks_where_there_is_no_number() -> None:
    figure = lines_figure([Line("a", [1, 2, 3, 4], [1.0, math.nan, 2.0, math.inf], 0)], x_title="step")
    (path,) = re.findall(r'<path class="c0 d0" d="([^"]*)"', figure)
    assert path.count("M") == 2 and "nan" not in figure and "inf" not in figure
    assert 'data-x="1 3" data-y="1 2"' in figure


def test_a_long_line_is_shortened_and_has_no_marks() -> None:
    line = Line("a", range(5000), [float(n) for n in range(5000)], 0, band=([0.0] * 5000, [9.0] * 5000))
    figure = lines_figure([line], x_title="step")
    (path,) = re.findall(r'<path class="c0 d0" d="([^"]*)"', figure)
    assert path.count("l") == POINTS - 1 and "<use" not in figure and 'class="c0 band"' in figure


def test_a_path_goes_through_its_points_and_many_lines_share_the_points_of_a_figure() -> None:
    figure = lines_figure([Line("a", [0, 1, 2], [0.0, 1.0, 0.5], 0)], x_title="step", marks=False)
    (path,) = re.findall(r'<path class="c0 d0" d="M([^"]*)"', figure)
    x, y = zip(*[map(int, point.split(",")) for point in path.split("l")], strict=True)
    assert x[1] == x[2] and abs(y[1] + 2 * y[2]) <= 2 and 0 < x[0] < 200 and 1800 < y[0] < 2000
    lines = [Line(str(n), range(900), [1.0 * n] * 900, n) for n in range(24)]
    assert len(re.findall(r"l-?\d+,", lines_figure(lines, x_title="step"))) < ALL_POINTS


def test_limits_are_drawn_with_their_numbers_also_where_they_are_far_away() -> None:
    line = Line("a", [1, 2, 3], [0.1, 0.2, 0.3], 0)
    near = lines_figure([line], x_title="round", limits=[Level("limit", (0.5,))])
    (y,) = re.findall(r'<line class="limit" x2="100%" y1="([^"]*)"', near)
    assert 0 < float(y) < HEIGHT / 4 and ">limit 0.5<" in near and "0.5" in ticks(near, "up")
    far = lines_figure([line], x_title="round", limits=[Level("limit", (9.0,)), Level("least", (-9.0,))])
    assert ">limit 9 ↑<" in far and ">least -9 ↓<" in far and "0.30" in ticks(far, "up")
    steps = lines_figure([line], x_title="round", limits=[Level("limit", (0.4, 0.4, 0.5), (1, 2, 3))])
    assert '<path class="limit" d="M' in steps and ">limit 0.5<" in steps


def test_bars_are_stacked_and_many_are_added_up() -> None:
    figure = bars_figure(["1", "2"], [("trained on", [3.0, 0.0]), ("tie", [1.0, 2.0])], x_title="round")
    tall = [float(height) for height in re.findall(r'<rect class="c\d"[^>]* height="([^"]*)"', figure)]
    assert [round(height / tall[1], 1) for height in tall] == [3.0, 1.0, 2.0]
    assert 'data-tip="trained on: 3 · round 1"' in figure and 'fill="url(#p1)"' in figure and ">tie</span>" in figure
    many = bars_figure([str(n) for n in range(240)], [("a", [1.0] * 240)], x_title="round")
    assert many.count("<rect class") == MOST_BARS and 'data-tip="a: 4 · round 0–3"' in many


def test_a_histogram_shows_shares() -> None:
    figure = histogram_figure([("round 1", Histogram((0.0, 1.0, 2.0), (3, 1)))], x_title="margin")
    assert 'data-x="0 0 1 1 2 2" data-y="0 0.75 0.75 0.25 0.25 0"' in figure
    single = histogram_figure([("round 1", Histogram((1.0, 1.0), (3,)))], x_title="margin")
    assert 'data-x="1 1 1 1" data-y="0 1 1 0"' in single


ODD = (0.0, 0.5, 0.5 - 1e-16, -0.0, 5e-324, -1e308, 1e308, 1e-12, 1e9, float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("form", ["", ".0%", ".1e"])
def test_no_number_is_too_odd_to_be_drawn(form: str) -> None:
    for one, other in itertools.product(ODD, ODD):
        band = ([other, one], [one, other])
        lines = [
            Line("a", [0, 1], [one, other], 0, band=band),
            Line("b", [one, other], [0.1, 0.2], 1, texts=["x", "y"]),
        ]
        for line in lines:
            figure = lines_figure([line], x_title="round", y_format=form, limits=[Level("limit", (2.0,))], level=0.5)
            assert "nan" not in figure and "inf" not in figure.replace("infinit", "")


def test_values_that_differ_by_rounding_are_one_value() -> None:
    figure = lines_figure([Line("a", [0.0, 0.1], [0.5, 0.5 - 1e-16], 0)], x_title="KL", y_format=".0%")
    assert ticks(figure, "up")[:2] == ["0%", "10%"]
