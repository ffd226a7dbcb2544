"""The picture of the discriminator's study."""

import statistics
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from tests.studies.discriminator_arms import Point

STYLES = ("o-", "v:", "^--", "s-.", "D:")


def draw(found: Mapping[str, Mapping[int, list[Point]]], form: str) -> bytes:
    """Gold reward by gold bought and by round, and the labels' accuracy: thin for each seed, thick the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    measures = (("bought", "reward"), ("round", "reward"), ("round", "accuracy"))
    for number, (arm, runs) in enumerate(found.items()):
        for axes, (across, up) in zip(panels, measures, strict=True):
            _lines(axes, list(runs.values()), across, up, f"C{number}", STYLES[number], arm)
    for axes, across, up in (
        (panels[0], "gold comparisons bought", "gold reward on held-out prompts"),
        (panels[1], "round", "gold reward on held-out prompts"),
        (panels[2], "round", "accuracy of labels on the round's own samples"),
    ):
        axes.set(xlabel=across, ylabel=up)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    content = BytesIO()
    figure.savefig(content, format=form, dpi=120)
    return content.getvalue()


def _lines(axes: Any, runs: list[list[Point]], across: str, up: str, colour: str, style: str, arm: str) -> None:
    rounds = [n for n in range(len(runs[0])) if all(getattr(points[n], up) is not None for points in runs)]
    if not rounds:
        return
    for points in runs:
        places = [getattr(points[n], across) for n in rounds]
        axes.plot(places, [getattr(points[n], up) for n in rounds], color=colour, linewidth=0.6, alpha=0.5)
    means = [[statistics.fmean(getattr(points[n], name) for points in runs) for n in rounds] for name in (across, up)]
    axes.plot(*means, style, color=colour, label=arm, linewidth=1.8, markersize=5)
