"""A panel of the page, and the labels of its lines."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.report.html.run_facts import RunFacts

Runs = Sequence[RunFacts]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure with its title, unit and a few words on how to read it; ``wide``: as wide as the page."""

    title: str
    unit: str
    figure: str
    note: str = ""
    wide: bool = False


def run_label(run: RunFacts, label: str, several_runs: bool, several_metrics: bool) -> str:
    """The label of a line in the legend."""
    parts = [run.name] if several_runs else []
    return " · ".join([*parts, *([label] if several_metrics or not several_runs else [])])
