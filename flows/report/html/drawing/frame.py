"""The parts that figures share: their area with its grid, and the marks and patterns that they refer to."""

from collections.abc import Sequence
from html import escape

from flows.report.html.drawing.axes import Scale, tick_text

# How many colours, marks, dashes and patterns the page defines.
COLOURS, MARKS, DASHES, PATTERNS = 6, 6, 4, 8
HEIGHT = 190


def definitions() -> str:
    """The marks and patterns that figures refer to, once a page."""
    marks = (
        '<circle r="3.6"/>',
        '<path d="M-3.4-3.4h6.8v6.8h-6.8z"/>',
        '<path d="M0-4.8L4.8 0 0 4.8-4.8 0z"/>',
        '<path d="M0-4.4L4.4 3.4H-4.4z"/>',
        '<path d="M-3.4-3.4l6.8 6.8m0-6.8l-6.8 6.8" class="cross"/>',
        '<path d="M0-5l1.4 3.4 3.6.2-2.8 2.3 1 3.6L0 2.6l-3.2 1.9 1-3.6L-5-1.4l3.6-.2z"/>',
    )
    patterns = ("", "M0 6L6 0", "M0 0L6 6M0 6L6 0", "M2 3h1.6", "M0 3h6", "M0 3h6M3 0v6", "M3 0v6", "M0 0L6 6")
    drawn = [f'<g id="m{place}">{mark}</g>' for place, mark in enumerate(marks)]
    drawn += [
        f'<pattern id="p{place}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<path d="{path}" stroke="#fff" stroke-width="1.4"/></pattern>'
        for place, path in enumerate(patterns)
        if path
    ]
    return f'<svg class="defs" aria-hidden="true"><defs>{"".join(drawn)}</defs></svg>'


def framed(parts: Sequence[str], x_title: str, keys: Sequence[str], data: str = "") -> str:
    """The whole figure: its area with ``parts``, the title below it and the legend's ``keys``; ``data``: attributes."""
    legend = f'<div class="legend">{"".join(keys)}</div>' if keys else ""
    title = f'<p class="across">{escape(x_title)}</p>' if x_title else ""
    area = f'<svg class="area" height="{HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'<div class="chart"{data}>{area}{title}{legend}</div>'


def grid(up: Scale, form: str) -> str:
    """The vertical axis with its ticks, whose labels have the format ``form``, and a line for each."""
    lines = [across_line(up, tick, "grid") for tick in up.ticks]
    texts = [
        f'<text class="up" x="-8" y="{(1 - up.place(tick)) * HEIGHT + 4:.1f}">{tick_text(tick, up.step, form)}</text>'
        for tick in up.ticks
    ]
    return "".join([*lines, *texts, f'<path class="axis" d="M0 0V{HEIGHT}"/>'])


def across_line(up: Scale, value: float, kind: str) -> str:
    """A horizontal line at ``value``; ``kind``: its class in the page's style sheet."""
    y = f"{(1 - up.place(value)) * HEIGHT:.1f}"
    return f'<line class="{kind}" x2="100%" y1="{y}" y2="{y}"/>'
