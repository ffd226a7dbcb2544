"""Standard evaluations as columns, rows and lines, from the metrics of rounds. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.facts import RoundFacts, estimate

Metrics = Mapping[str, Any]
SHARE, NUMBER = "{:.1%}", "{:.4g}"


def suite_columns(rounds: Sequence[Metrics]) -> list[tuple[str, str, str]]:
    """A column for each suite's main metric: its key in metrics.json, heading and format."""
    names = dict.fromkeys(name for metrics in rounds for name in metrics.get("suites") or {})
    return [(key, name.replace("_", "\n"), _form(rounds, key)) for name in names for key in [f"suite_{name}"]]


def suite_measures(facts: Sequence[RoundFacts]) -> list[tuple[str, str, str]]:
    """All metrics of suites: key, suite and metric in words, and format; intervals are not listed."""
    rounds = [one.metrics for one in facts]
    found: list[tuple[str, str, str]] = []
    names = dict.fromkeys(name for metrics in rounds for name in metrics.get("suites") or {})
    for name in names:
        start = f"suite_{name}_"
        keys = dict.fromkeys(
            key for metrics in rounds for key in metrics if key.startswith(start) and not key.endswith("_ci")
        )
        longer = [f"suite_{other}_" for other in names if other.startswith(f"{name}_")]
        own = [key for key in keys if not any(key.startswith(other) for other in longer)]
        found += [(key, f"{name}: {key.removeprefix(start).replace('_', ' ')}", _form(rounds, key)) for key in own]
    return found


def suite_value(facts: RoundFacts, key: str, form: str) -> str:
    """A metric with its interval, or a dash."""
    found = estimate(facts.metrics, key)
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return form.format(found.mean)
    return f"{form.format(found.mean)} ({form.format(found.low)} to {form.format(found.high)})"


def _form(rounds: Sequence[Metrics], key: str) -> str:
    values = [value for metrics in rounds if isinstance(value := metrics.get(key), int | float)]
    return SHARE if all(isinstance(value, float) and 0 <= value <= 1 for value in values) else NUMBER
