"""Held-out measures by source, category and criterion, in cells. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.report.facts import cell, estimate
from pipeline.safe_text import one_line

# metric, heading, format
PART_COLUMNS = (
    ("prompts", "prompts", "{:,}"),
    ("reward", "reward", "{:.3f}"),
    ("score", "score", "{:.3f}"),
    ("win_rate_vs_start", "wins vs start", "{:.1%}"),
    ("response_length", "tokens", "{:.1f}"),
    ("stop_rate", "ended", "{:.1%}"),
    ("held_out_accuracy", "held-out accuracy", "{:.1%}"),
)
_LETTERS = 60


def part_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """The name of each part of a round's held-out prompts, and its cells of ``PART_COLUMNS``."""
    for kind in ("by_source", "by_category", "by_criterion"):
        responses, pairs = (metrics.get(f"{of}{kind}") or {} for of in ("", "held_out_"))
        for name in dict.fromkeys((*responses, *pairs)):
            measured = {**responses.get(name, {}), **pairs.get(name, {})}
            yield [one_line(str(name), _LETTERS), *(_cell(measured, key, form) for key, _, form in PART_COLUMNS)]


def _cell(measured: Mapping[str, Any], key: str, form: str) -> str:
    found = None if key == "prompts" else estimate(measured, key)
    if found is None or found.low is None or found.high is None:
        return cell(measured.get(key), form)
    return f"{form.format(found.mean)} ({form.format(found.low)} to {form.format(found.high)})"
