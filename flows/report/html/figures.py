"""Figures that are readable on light and dark paper, in a narrow window, and without colours.

Paper and letters take their colours from the page's style sheet; lines differ by colour, dash and mark. The colours are
Okabe and Ito's (jfly.uni-koeln.de/color), distinct with every common colour-vision deficiency; blue is lighter and
purple darker here, so that each has a contrast of at least 3 to white and to near-black.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from flows.report.charts import Histogram

_COLOURS = ("#2b83c6", "#d55e00", "#009e73", "#b5649a", "#9a7b1c", "#7c7c88")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "star")
_PATTERNS = ("", "/", "x", ".", "-", "+", "|", "\\")
DASHES = ("solid", "dash", "dot", "dashdot")
CONFIG = {"displayModeBar": False, "responsive": True}
HEIGHT = 250
# Pixels of one legend row, and of the narrowest figure.
_ENTRY, NARROW = 20, 330
# Most points of one line; longer lines are reduced to means of equal stretches.
POINTS = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure.

    ``colour`` and ``dash`` count in ``COLOURS`` and ``DASHES``; ``band`` holds the lower and upper ends of intervals.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    texts: Sequence[str] | None = None


def lines_figure(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_format: str = "",
    marks: bool = True,
    level: float | None = None,
    bounds: Sequence[float] = (),
    whole: bool = False,
) -> str:
    """Lines over ``x_title``.

    Args:
        lines: in the legend's order.
        x_title: label below the axis.
        y_format: a d3 format, such as ``.0%``.
        marks: whether points are marked.
        level: a meaningful horizontal line, such as one half.
        bounds: vertical lines, such as the starts of rounds.
        whole: x is a count, so the axis has only whole numbers.
    """
    figure = go.Figure(layout=_layout(x_title, y_format, [line.label for line in lines]))
    for line in lines:
        if line.band is not None:
            for trace in _band(line):
                figure.add_trace(trace)
        figure.add_trace(_trace(line, marks))
    if level is not None:
        figure.add_hline(y=level, line={"dash": "dot", "width": 1, "color": _COLOURS[-1]})
    for bound in bounds:
        figure.add_vline(x=bound, line={"dash": "dot", "width": 1, "color": _COLOURS[-1]})
    if len({y for line in lines for y in line.y}) == 1:
        # Around a single value the library would show a range of two, whatever its size.
        figure.update_yaxes(rangemode="tozero")
    if whole:
        largest = max((x for line in lines for x in line.x), default=0)
        figure.update_xaxes(dtick=max(1, round(largest / 8)), tickformat="d")
    return _html(figure)


def bars_figure(
    labels: Sequence[str], stacks: Sequence[tuple[str, Sequence[float]]], *, x_title: str, y_format: str = ""
) -> str:
    """Stacked bars: each stack has a name and one number for each of ``labels``."""
    figure = go.Figure(layout=_layout(x_title, y_format, [name for name, _ in stacks]))
    for place, (name, values) in enumerate(stacks):
        figure.add_trace(
            go.Bar(
                x=list(labels),
                y=list(values),
                name=name,
                marker={"color": _COLOURS[place % len(_COLOURS)], "line": {"width": 0}, "pattern": _pattern(place)},
            )
        )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(type="category")
    return _html(figure)


def histogram_figure(found: Sequence[tuple[str, Histogram]], *, x_title: str) -> str:
    """Shares of each histogram's values, as steps over a shared axis."""
    figure = go.Figure(layout=_layout(x_title, ".0%", [name for name, _ in found]))
    for place, (name, histogram) in enumerate(found):
        total = sum(histogram.counts)
        shares = [count / total for count in histogram.counts]
        figure.add_trace(
            go.Scatter(
                x=[histogram.edges[0], *histogram.edges, histogram.edges[-1]],
                y=[0.0, *shares, shares[-1], 0.0],
                name=name,
                mode="lines",
                line={
                    "shape": "hv",
                    "width": 2,
                    "color": _COLOURS[place % len(_COLOURS)],
                    "dash": DASHES[place % len(DASHES)],
                },
            )
        )
    return _html(figure)


def library() -> str:
    """The source of the library that draws the figures, for a script element."""
    return str(get_plotlyjs())


def _trace(line: Line, marks: bool) -> go.Scatter:
    colour = _COLOURS[line.colour % len(_COLOURS)]
    return go.Scatter(
        x=list(line.x),
        y=list(line.y),
        name=line.label,
        mode=("lines+markers" if marks else "lines") + ("+text" if line.texts is not None else ""),
        text=None if line.texts is None else list(line.texts),
        textposition="top center",
        cliponaxis=False,
        line={"color": colour, "width": 2, "dash": DASHES[line.dash % len(DASHES)]},
        marker={"size": 7, "symbol": MARKS[(line.colour + line.dash) % len(MARKS)], "color": colour},
    )


def _band(line: Line) -> list[go.Scatter]:
    assert line.band is not None, "the caller checks"
    red, green, blue = (int(_COLOURS[line.colour % len(_COLOURS)][place : place + 2], 16) for place in (1, 3, 5))
    plain = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low, high = line.band
    return [
        go.Scatter(x=list(line.x), y=list(low), **plain),
        go.Scatter(x=list(line.x), y=list(high), fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.18)", **plain),
    ]


def _pattern(place: int) -> dict[str, object]:
    shape = _PATTERNS[place % len(_PATTERNS)]
    return {"shape": shape, "size": 6, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "#ffffff"}


def _layout(x_title: str, y_format: str, labels: Sequence[str]) -> go.Layout:
    # The legend is below; its entries form columns as wide as the longest entry.
    columns = max(1, NARROW // (60 + 7 * max(map(len, labels), default=0)))
    legend = _ENTRY * math.ceil(len(labels) / columns) if len(labels) > 1 else 0
    return go.Layout(
        template="none",
        height=HEIGHT + legend,
        margin={"l": 52, "r": 12, "t": 16, "b": 44 + legend},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        showlegend=len(labels) > 1,
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom", "traceorder": "normal"},
        hovermode="closest",
        xaxis={"title": {"text": x_title, "standoff": 6}, "showgrid": False, "zeroline": False, "automargin": True},
        yaxis={"tickformat": y_format, "zeroline": False, "automargin": True, "nticks": 6},
    )


def _html(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
