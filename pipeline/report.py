"""The report of a run as one self-contained HTML page. Data in, text out; model text is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined

from pipeline.rounds_table import COLUMNS, cell
from pipeline.shown_text import visible
from pipeline.store import Manifest, versions

Metrics = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("report.html.jinja")

# Okabe and Ito's palette: told apart with every common colour-vision deficiency.
BLUE, ORANGE = "#0072B2", "#D55E00"

PLOTS = (
    ("Reward", "mean reward", (("reward", "sampled", BLUE),)),
    ("Win rate against the start", "share of held-out prompts", (("win_rate_vs_start", "win rate", BLUE),)),
    (
        "Slot errors",
        "share of slots",
        (("slot_error_rate", "greedy", BLUE), ("slot_error_rate_sampled", "sampled", ORANGE)),
    ),
    (
        "KL on the policy's samples",
        "nats per token",
        (("kl_to_start", "to start", BLUE), ("kl_to_previous", "to previous", ORANGE)),
    ),
    ("Length", "tokens", (("response_length", "sampled", BLUE),)),
    ("Held-out pairs ranked rightly", "share", (("held_out_accuracy", "implicit reward", BLUE),)),
)


@dataclass(frozen=True)
class Comparison:
    """One held-out prompt before and after training."""

    prompt: str
    before: str
    before_score: str
    after: str
    after_score: str


def render_report(
    name: str,
    config: str,
    rounds: Sequence[Metrics],
    comparisons: Sequence[Comparison],
    manifests: Sequence[tuple[str, Manifest]],
) -> str:
    """The page. ``rounds`` are the metrics of each round in order, ``manifests`` the stages with their titles."""
    shown = [column for column in COLUMNS if any(metrics.get(column[0]) is not None for metrics in rounds)]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["visible"] = visible
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=name,
        config=config,
        columns=[heading.replace("\n", " ") for _, heading, _ in shown],
        rows=[
            {"round": metrics["round"], "cells": [cell(metrics.get(key), form) for key, _, form in shown]}
            for metrics in rounds
        ],
        plots=_plots(rounds),
        comparisons=comparisons,
        last_round=rounds[-1]["round"] if rounds else 0,
        stages=[{"title": title, "rows": m.rows, "seconds": f"{m.seconds:.1f}"} for title, m in manifests],
        versions=versions(),
    )


def _plots(rounds: Sequence[Metrics]) -> list[str]:
    drawn: list[str] = []
    for title, unit, lines in PLOTS:
        known = [line for line in lines if any(metrics.get(line[0]) is not None for metrics in rounds)]
        if not known or len(rounds) < 2:
            continue
        figure = go.Figure(layout=_layout(title, unit, legend=len(known) > 1))
        for key, label, colour in known:
            figure.add_trace(_line(rounds, key, label, colour))
        # The library's source goes in once, with the first plot.
        drawn.append(
            figure.to_html(
                full_html=False, include_plotlyjs=not drawn, config={"displayModeBar": False, "responsive": True}
            )
        )
    return drawn


def _line(rounds: Sequence[Metrics], key: str, label: str, colour: str) -> go.Scatter:
    points = [metrics for metrics in rounds if metrics.get(key) is not None]
    values = [metrics[key] for metrics in points]
    intervals = [metrics[f"{key}_ci"] for metrics in points if metrics.get(f"{key}_ci")]
    bars = None
    if len(intervals) == len(values):
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [high - value for value, (_, high) in zip(values, intervals, strict=True)],
            "arrayminus": [value - low for value, (low, _) in zip(values, intervals, strict=True)],
        }
    numbers = [metrics["round"] for metrics in points]
    return go.Scatter(x=numbers, y=values, name=label, mode="lines+markers", line={"color": colour}, error_y=bars)


def _layout(title: str, unit: str, legend: bool) -> go.Layout:
    return go.Layout(
        title={"text": title, "font": {"size": 15}},
        xaxis={"title": "round", "dtick": 1},
        yaxis={"title": unit, "rangemode": "tozero"},
        template="plotly_white",
        height=280,
        margin={"l": 60, "r": 20, "t": 45, "b": 45},
        showlegend=legend,
    )
