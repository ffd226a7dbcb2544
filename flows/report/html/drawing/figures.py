"""Figures as SVG that a page holds whole: no library draws them, so the page is small and shows them without scripts.

Places are shares of the figure's width, so that a figure fits a phone and a wide window without scaling its letters.
Colours come from the page's style sheet; lines differ by colour, dash and mark. ``hover.js`` shows a point's numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from flows.report.charts import Histogram, thinned
from flows.report.html.drawing.axes import Scale, can_be_drawn, scale, tick_text
from flows.report.html.drawing.frame import COLOURS, DASHES, HEIGHT, MARKS, across_line, framed, grid

# Most points of one line, and of all lines of a figure; longer lines are reduced to means of equal stretches. A line of
# more than MARKED points has no marks.
POINTS, ALL_POINTS, MARKED = 220, 1000, 60
# A figure's width and height in the units of its paths.
_UNITS = 2000
# A level farther away than this many times the spread of the data is drawn at the figure's edge.
_FAR = 3.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure.

    ``colour`` and ``dash`` count in the page's colours and dashes; ``band``: lower and upper ends of intervals.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    texts: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """A limit with its name: one height, or one for each of ``x`` if it changes."""

    name: str
    y: Sequence[float]
    x: Sequence[float] = ()


def lines_figure(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_format: str = "",
    marks: bool = True,
    level: float | None = None,
    bounds: Sequence[float] = (),
    whole: bool = False,
    limits: Sequence[Level] = (),
) -> str:
    """Lines over ``x_title``.

    Args:
        lines: in the legend's order.
        x_title: label below the axis.
        y_format: a format for numbers, such as ``.0%``.
        marks: whether points are marked.
        level: a meaningful horizontal line, such as one half.
        bounds: vertical lines, such as the starts of rounds.
        whole: x is a count, so the axis has only whole numbers.
        limits: drawn with their names; those far away at the edge, with their number.
    """
    points = min(POINTS, max(2, ALL_POINTS // max(len(lines), 1)))
    shown = [_shortened(_with_places(line), points) for line in lines]
    across = scale([x for line in shown for x in line.x], free=0.03, whole=whole, ticks=8)
    heights = [y for line in shown for ends in (line.y, *(line.band or ())) for y in ends]
    near, far = _near(limits, heights)
    up = scale([*heights, *(y for limit in near for y in limit.y), *_levels(level, heights)])
    parts = [grid(up, y_format), _ticks(across)]
    if level is not None and 0.0 <= up.place(level) <= 1.0:
        parts.append(across_line(up, level, "level"))
    parts += [_upright(across, bound) for bound in bounds]
    inside = [_band(line, across, up) for line in shown if line.band is not None]
    inside += [_path(line, across, up) for line in shown]
    parts.append(_stretched(inside))
    marked = [line for line in shown if marks and len(line.x) <= MARKED]
    parts += [_mark(line, x, y, across, up) for line in marked for x, y in _finite(line)]
    parts += [text for line in shown for text in _texts(line, across, up)]
    parts += [_limit(limit, across, up, y_format) for limit in near]
    parts += [_far_limit(limit, max(heights, default=0.0), y_format) for limit in far]
    range_ = " ".join(f"{end:.6g}" for end in (across.low, across.high, up.low, up.high))
    data = f' data-range="{range_}" data-form="{escape(y_format)}" data-across="{escape(x_title)}"'
    keys = [_line_key(line, line in marked) for line in shown] if len(shown) > 1 else []
    return framed(parts, x_title, keys, data)


def histogram_figure(found: Sequence[tuple[str, Histogram]], *, x_title: str) -> str:
    """Shares of each histogram's values, as steps over a shared axis."""
    lines = []
    for place, (name, histogram) in enumerate(found):
        total = sum(histogram.counts)
        shares = [count / total for count in histogram.counts]
        ends = [edge for edge in histogram.edges for _ in range(2)]
        heights = [0.0, *(share for share in shares for _ in range(2)), 0.0]
        lines.append(Line(name, ends[: len(heights)], heights[: len(ends)], place, dash=place))
    return lines_figure(lines, x_title=x_title, y_format=".0%", marks=False)


def _with_places(line: Line) -> Line:
    """Return the line without points that have no place across."""
    kept = [place for place, x in enumerate(line.x) if can_be_drawn(x)]
    if len(kept) == len(line.x):
        return line
    x, y = [line.x[place] for place in kept], [line.y[place] for place in kept]
    band = None if line.band is None else ([line.band[0][at] for at in kept], [line.band[1][at] for at in kept])
    texts = None if line.texts is None else [line.texts[place] for place in kept]
    return replace(line, x=x, y=y, band=band, texts=texts)


def _shortened(line: Line, points: int) -> Line:
    if len(line.x) <= points:
        return line
    band = None if line.band is None else (thinned(line.band[0], points), thinned(line.band[1], points))
    x, y = thinned(line.x, points), thinned(line.y, points)
    return Line(line.label, x, y, line.colour, line.dash, band)


def _levels(level: float | None, heights: Sequence[float]) -> list[float]:
    """The level, if it is near enough to the data to show it without flattening them."""
    return [] if level is None or _near([Level("", (level,))], heights)[1] else [level]


def _near(limits: Sequence[Level], heights: Sequence[float]) -> tuple[list[Level], list[Level]]:
    """Limits that lie near the data, and those that would flatten them."""
    finite = [y for y in heights if can_be_drawn(y)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = _FAR * ((high - low) or abs(high) or 1.0)
    near = [limit for limit in limits if low - room <= min(limit.y) and max(limit.y) <= high + room]
    return near, [limit for limit in limits if limit not in near]


def _ticks(across: Scale) -> str:
    texts = [
        f'<text class="below" x="{across.place(tick):.2%}" y="{HEIGHT + 16}">{tick_text(tick, across.step)}</text>'
        for tick in across.ticks
    ]
    return "".join([*texts, f'<line class="axis" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/>'])


def _upright(across: Scale, value: float) -> str:
    x = f"{across.place(value):.2%}"
    return f'<line class="level" x1="{x}" x2="{x}" y2="{HEIGHT}"/>'


def _stretched(parts: Iterable[str]) -> str:
    """Paths in shares of the figure's width and height; the page keeps their strokes from being stretched."""
    size = f'viewBox="0 0 {_UNITS} {_UNITS}" preserveAspectRatio="none" width="100%" height="100%"'
    return f'<svg class="lines" {size}>{"".join(parts)}</svg>'


def _finite(line: Line) -> Iterator[tuple[float, float]]:
    return ((x, y) for x, y in zip(line.x, line.y, strict=True) if can_be_drawn(y))


def _drawn(points: Iterable[tuple[float, float]], across: Scale, up: Scale) -> str:
    """A path through ``points``, broken where a height is not finite."""
    path: list[str] = []
    last: tuple[int, int] | None = None
    for x, y in points:
        if not can_be_drawn(y):
            last = None
            continue
        at = round(across.place(x) * _UNITS), round((1 - up.place(y)) * _UNITS)
        # From point to point, which is half as long as the places themselves.
        path.append(f"M{at[0]},{at[1]}" if last is None else f"l{at[0] - last[0]},{at[1] - last[1]}")
        last = at
    return "".join(path)


def _path(line: Line, across: Scale, up: Scale) -> str:
    known = [*_finite(line)]
    x, y = (" ".join(f"{point[side]:.5g}" for point in known) for side in (0, 1))
    data = f'data-name="{escape(line.label)}" data-x="{x}" data-y="{y}"'
    drawn = _drawn(zip(line.x, line.y, strict=True), across, up)
    return f'<path class="c{line.colour % COLOURS} d{line.dash % DASHES}" d="{drawn}" {data}/>'


def _band(line: Line, across: Scale, up: Scale) -> str:
    assert line.band is not None, "the caller checks"
    low, high = line.band
    ends = [*zip(line.x, low, strict=True), *reversed([*zip(line.x, high, strict=True)])]
    if len(line.x) == 1:
        # An area needs two points.
        return f'<path class="c{line.colour % COLOURS} interval" d="{_drawn(ends, across, up)}"/>'
    closed = _drawn([(x, y) for x, y in ends if can_be_drawn(y)], across, up)
    return f'<path class="c{line.colour % COLOURS} band" d="{closed}Z"/>'


def _mark(line: Line, x: float, y: float, across: Scale, up: Scale) -> str:
    place = (line.colour + line.dash) % MARKS
    where = f'x="{across.place(x):.2%}" y="{(1 - up.place(y)) * HEIGHT:.1f}"'
    return f'<use href="#m{place}" class="c{line.colour % COLOURS}" {where}/>'


def _texts(line: Line, across: Scale, up: Scale) -> Iterator[str]:
    for x, y, text in zip(line.x, line.y, line.texts or (), strict=bool(line.texts)):
        if can_be_drawn(y):
            where = f'x="{across.place(x):.2%}" y="{(1 - up.place(y)) * HEIGHT - 8:.1f}"'
            yield f'<text class="below" {where}>{escape(text)}</text>'


def _limit(limit: Level, across: Scale, up: Scale, form: str) -> str:
    y = (1 - up.place(limit.y[-1])) * HEIGHT
    name = f'<text class="limit" x="6" y="{y - 4:.1f}">{escape(limit.name)} {_said(limit.y[-1], form)}</text>'
    if len(set(limit.y)) == 1:
        return across_line(up, limit.y[0], "limit") + name
    drawn = _drawn(zip(limit.x, limit.y, strict=True), across, up)
    return _stretched([f'<path class="limit" d="{drawn}"/>']) + name


def _far_limit(limit: Level, highest: float, form: str) -> str:
    above = min(limit.y) > highest
    y, arrow = (1.0, "↑") if above else (HEIGHT - 1.0, "↓")
    text = f"{limit.name} {_said(limit.y[-1], form)} {arrow}"
    line = f'<line class="limit" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="limit" x="6" y="{y + (13 if above else -5):.1f}">{escape(text)}</text>'


def _said(value: float, form: str) -> str:
    return f"{value:{form}}" if form else f"{value:.4g}"


def _line_key(line: Line, marked: bool) -> str:
    mark = f'<use href="#m{(line.colour + line.dash) % MARKS}" x="14" y="6"/>' if marked else ""
    drawn = f'<line class="d{line.dash % DASHES}" x2="28" y1="6" y2="6"/>{mark}'
    return (
        f'<span><svg class="c{line.colour % COLOURS}" width="28" height="12">{drawn}</svg>{escape(line.label)}</span>'
    )
