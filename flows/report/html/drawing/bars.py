"""Stacked bars. See ``figures`` for how figures are drawn."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from flows.report.html.drawing.axes import Scale, scale
from flows.report.html.drawing.frame import COLOURS, HEIGHT, PATTERNS, framed, grid

# Most bars of one figure; more are added up in equal stretches.
MOST_BARS = 60
# Letters that fit below all bars together, and most labels.
_LETTERS, _LABELS = 44, 12


def bars_figure(
    labels: Sequence[str], stacks: Sequence[tuple[str, Sequence[float]]], *, x_title: str, y_format: str = ""
) -> str:
    """Stacked bars: each stack has a name and one number for each of ``labels``."""
    labels, stacks = _grouped(labels, stacks)
    totals = [sum(values[place] for _, values in stacks) for place in range(len(labels))]
    up = scale([0.0, *totals], free=0.0)
    up = Scale(0.0, up.high * 1.04, up.step)
    parts = [grid(up, y_format), *_bar_labels(labels)]
    width = 100 / max(len(labels), 1)
    for place, label in enumerate(labels):
        below = 0.0
        for stack, (name, values) in enumerate(stacks):
            value = values[place]
            if value > 0:
                top, tall = (1 - up.place(below + value)) * HEIGHT, value / up.high * HEIGHT
                where = (
                    f'x="{(place + 0.18) * width:.2f}%" y="{top:.1f}" width="{0.64 * width:.2f}%" height="{tall:.1f}"'
                )
                said = escape(f"{name}: {value:,.4g} · {x_title} {label}".replace(" ·  ", " · "))
                parts.append(f'<rect class="c{stack % COLOURS}" {where} data-tip="{said}"/>')
                if stack % PATTERNS:
                    parts.append(f'<rect class="over" {where} fill="url(#p{stack % PATTERNS})"/>')
            below += value
    return framed(parts, x_title, [_bar_key(*named) for named in enumerate(name for name, _ in stacks)])


def _grouped(
    labels: Sequence[str], stacks: Sequence[tuple[str, Sequence[float]]]
) -> tuple[Sequence[str], Sequence[tuple[str, Sequence[float]]]]:
    """Bars for stretches of labels, if there are more than ``MOST_BARS``."""
    if len(labels) <= MOST_BARS:
        return labels, stacks
    size = math.ceil(len(labels) / MOST_BARS)
    starts = range(0, len(labels), size)
    names = [f"{labels[start]}–{labels[min(start + size, len(labels)) - 1]}" for start in starts]
    return names, [(name, [sum(values[start : start + size]) for start in starts]) for name, values in stacks]


def _bar_labels(labels: Sequence[str]) -> Iterator[str]:
    every, width = math.ceil(len(labels) / _LABELS), 100 / max(len(labels), 1)
    letters = max(3, _LETTERS // max(1, math.ceil(len(labels) / every)))
    for place, label in enumerate(labels):
        if place % every == 0:
            text = label if len(label) <= letters else label[: letters - 1] + "…"
            yield f'<text class="below" x="{(place + 0.5) * width:.2f}%" y="{HEIGHT + 16}">{escape(text)}</text>'
    yield f'<line class="axis" x2="100%" y1="{HEIGHT}" y2="{HEIGHT}"/>'


def _bar_key(place: int, name: str) -> str:
    square = '<rect width="14" height="12"/>'
    over = f'<rect class="over" width="14" height="12" fill="url(#p{place % PATTERNS})"/>' if place % PATTERNS else ""
    return f'<span><svg class="c{place % COLOURS}" width="14" height="12">{square}{over}</svg>{escape(name)}</span>'
