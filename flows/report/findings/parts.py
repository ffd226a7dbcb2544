"""Held-out measures by source, category and criterion, in cells. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.report.facts import cell, estimate
from pipeline.safe_text import one_line

# metric, heading, format
_COLUMNS = (
    ("prompts", "prompts", "{:,}"),
    ("reward", "reward", "{:.3f}"),
    ("reward_greedy", "reward, greedy", "{:.3f}"),
    ("score", "score", "{:.3f}"),
    ("win_rate_vs_start", "wins vs start", "{:.1%}"),
    ("win_rate_vs_previous", "wins vs prev.", "{:.1%}"),
    ("slot_error_rate", "slot errors, greedy", "{:.1%}"),
    ("slot_error_rate_sampled", "slot errors, sampled", "{:.1%}"),
    ("right", "right", "{:.1%}"),
    ("kl_to_start", "KL start", "{:.3f}"),
    ("kl_to_previous", "KL prev.", "{:.3f}"),
    ("reference_logprob", "refs, nats/token", "{:.3f}"),
    ("distance_within", "distance within", "{:.3f}"),
    ("response_length", "tokens", "{:.1f}"),
    ("stop_rate", "ended", "{:.1%}"),
    ("held_out_pairs", "held-out pairs", "{:,}"),
    ("held_out_accuracy", "held-out accuracy", "{:.1%}"),
    ("held_out_accuracy_vs_start", "accuracy vs start", "{:+.1%}"),
    ("held_out_log_loss", "held-out log-loss", "{:.3f}"),
    ("held_out_margin", "held-out margin", "{:.3f}"),
)
_KINDS = ("by_source", "by_category", "by_criterion")
_COUNTS = frozenset(("prompts", "held_out_pairs"))
_LETTERS = 60


@dataclass(frozen=True, slots=True)
class PartTable:
    """Parts of held-out prompts.

    Attributes:
        headings: of the cells after a part's name; columns without any values are left out.
        rows: for each round that was asked for, its parts: the name, then the cells.
    """

    headings: tuple[str, ...]
    rows: Sequence[Sequence[list[str]]]


def part_table(rounds: Sequence[Mapping[str, Any]]) -> PartTable:
    """The parts of each of ``rounds`` (their metrics.json), all in the same columns."""
    parts = [list(_parts(metrics)) for metrics in rounds]
    shown = [
        column for column in _COLUMNS if any(measured.get(column[0]) is not None for of in parts for _, measured in of)
    ]
    rows = [[[name, *(_cell(measured, key, form) for key, _, form in shown)] for name, measured in of] for of in parts]
    return PartTable(tuple(heading for _, heading, _ in shown), rows)


def _parts(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in _KINDS:
        responses, pairs = (metrics.get(f"{of}{kind}") or {} for of in ("", "held_out_"))
        for name in dict.fromkeys((*responses, *pairs)):
            yield one_line(str(name), _LETTERS), {**responses.get(name, {}), **pairs.get(name, {})}


def _cell(measured: Mapping[str, Any], key: str, form: str) -> str:
    found = None if key in _COUNTS else estimate(measured, key)
    if found is None or found.low is None or found.high is None:
        return cell(measured.get(key), form)
    return f"{form.format(found.mean)} ({form.format(found.low)} to {form.format(found.high)})"
