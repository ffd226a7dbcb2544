"""The HTML page. Data in, text out; text by models is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from flows.report.facts import COLUMNS, LabelFacts, RoundFacts, cell, estimate
from flows.report.html.data import data_panels, time_panels
from flows.report.html.figures import library
from flows.report.html.outcome import hacking_panels, outcome_panels
from flows.report.html.panel import Runs
from flows.report.html.run_facts import RunFacts
from flows.report.html.training import training_panels
from pipeline.safe_text import one_line, visible

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True, slots=True)
class Table:
    """Displayed cells under their headings; the first column is text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_report(runs: Runs) -> str:
    """Render the page of one or more runs. Panels and tables without numbers are left out."""
    sections = {
        "outcome": outcome_panels(runs),
        "hacking": hacking_panels(runs),
        "training": training_panels(runs),
        "data": data_panels(runs),
        "time": time_panels(runs),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        cards=[_card(run) for run in runs],
        rounds=_rounds(runs),
        decisions=_decisions(runs),
        notices=_notices(runs),
        labels=_labels(runs),
        discriminator=_discriminator(runs),
        memory=_memory(runs),
        differences=_differences(runs) if len(runs) > 1 else None,
        samples=_samples(runs),
        library=library() if any(sections.values()) else "",
        **sections,
    )


def _card(run: RunFacts) -> dict[str, Any]:
    """A few key numbers of the run."""
    numbers: list[tuple[str, str, str]] = []
    if run.evaluated:
        first, last = run.evaluated[0], run.evaluated[-1]
        numbers += _ranking(last)
        if last.reward is not None and first.reward is not None:
            numbers.append(("reward", f"{last.reward:.3g}", f"from {first.reward:.3g}"))
        if last.win_rate_vs_start is not None and last.round > 0:
            won = last.win_rate_vs_start
            spread = f"{won.low:.0%} to {won.high:.0%}" if won.low is not None and won.high is not None else ""
            numbers.append(("win rate vs start", f"{won.mean:.0%}", spread))
        if last.kl_to_start is not None:
            numbers.append(("KL to start", f"{last.kl_to_start:.3f}", "nats per token"))
        if last.response_length is not None and first.response_length is not None:
            numbers.append(("length", f"{last.response_length:.0f}", f"tokens, from {first.response_length:.0f}"))
    numbers.append(
        ("time", rounded_time(sum(facts.seconds for facts in run.rounds)), f"{len(run.trained)} rounds trained")
    )
    cost = sum(facts.label_cost for facts in run.rounds)
    if cost:
        numbers.append(("labels", f"{cost:.4g}", "currency of the config"))
    return {"run": run, "numbers": numbers, "verdict": _verdict(run)}


def _ranking(facts: RoundFacts) -> list[tuple[str, str, str]]:
    """How a round ranks held-out pairs: what an offline run is about."""
    shown = []
    for name, title, form in (
        ("held_out_accuracy", "held-out accuracy", "{:.1%}"),
        ("held_out_margin", "held-out margin", "{:.3f}"),
    ):
        found = estimate(facts.metrics, name)
        if found is not None:
            ends = [form.format(end) for end in (found.low, found.high) if end is not None]
            shown.append((title, form.format(found.mean), " to ".join(ends)))
    return shown


def rounded_time(seconds: float) -> str:
    """Time in the largest unit that gives a number of at least 1."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _verdict(run: RunFacts) -> str:
    gates = [facts for facts in run.rounds if facts.gate is not None]
    if not gates or gates[-1].gate is None:
        return ""
    return f"gate after round {gates[-1].round}: {gates[-1].gate.decision.replace('_', ' ')}"


def _rounds(runs: Runs) -> Table:
    everything = [facts for run in runs for facts in run.evaluated]
    shown = [column for column in COLUMNS if any(facts.metrics.get(column[0]) is not None for facts in everything)]
    rows = [
        [_place(runs, run, facts), *(cell(facts.metrics.get(name), form) for name, _, form in shown)]
        for run in runs
        for facts in run.evaluated
    ]
    return Table(["round", *(heading.replace("\n", " ") for _, heading, _ in shown)], rows)


def _place(runs: Runs, run: RunFacts, facts: RoundFacts) -> str:
    return str(facts.round) if len(runs) == 1 else f"{run.name} · {facts.round}"


def _decisions(runs: Runs) -> list[dict[str, Any]]:
    return [
        {
            "place": _place(runs, run, facts),
            "decision": facts.gate.decision.replace("_", " "),
            "kind": facts.gate.decision,
            "reasons": facts.gate.reasons,
            "best": facts.gate.best_round,
        }
        for run in runs
        for facts in run.rounds
        if facts.gate is not None
    ]


def _notices(runs: Runs) -> list[str]:
    """Alarms, early ends and kept weights of all trainings."""
    return [
        f"round {_place(runs, run, facts)}: {notice}"
        for run in runs
        for facts in run.rounds
        if facts.training is not None
        for notice in facts.training.notices()
    ]


def _labels(runs: Runs) -> Table | None:
    """Stages with a labeller that costs money or may fail; rules always answer, and always the same."""
    rows = [
        [_place(runs, run, facts), one.stage, *_asked(one)]
        for run in runs
        for facts in run.rounds
        for one in facts.labels
        if one.questions or one.missing or one.broken or one.disagreement is not None
    ]
    headings = [
        "round",
        "stage",
        "questions",
        "from the cache",
        "missing",
        "orders disagree",
        "spread",
        "calls",
        "cost",
        "with control tokens",
    ]
    return Table(headings, rows) if rows else None


def _asked(one: LabelFacts) -> list[str]:
    missing = sum(one.missing_by_cause.values()) or one.missing or 0
    said = {cause: f": {one_line(text, 160)}" for cause, text in one.said_by_cause.items()}
    causes = ", ".join(f"{cause} {count}{said.get(cause, '')}" for cause, count in one.missing_by_cause.items())
    return [
        cell(one.questions, "{:,}"),
        cell(one.cache_hit_rate, "{:.0%}"),
        f"{missing:,}" + (f" ({causes})" if causes else ""),
        cell(one.orders_that_disagree, "{:.1%}"),
        cell(one.disagreement, "{:.3f}"),
        f"{one.calls:,}" + (f" ({one.failed_calls:,} failed)" if one.failed_calls else ""),
        f"{one.cost:.4g}",
        f"{one.broken:,}",
    ]


def _discriminator(runs: Runs) -> Table | None:
    rows = []
    for run in runs:
        for facts in run.rounds:
            found = facts.discriminator
            if found is not None:
                accuracies = (found.accuracy, found.previous_accuracy, found.fresh_accuracy)
                counts = [cell(count, "{:,}") for count in (found.bought, found.gold, found.silver)]
                labels = "yes" if found.why_not is None else f"no: {found.why_not}"
                rows.append([_place(runs, run, facts), *counts, *(cell(a, "{:.1%}") for a in accuracies), labels])
    headings = ["round", "gold bought", "gold", "silver", "accuracy", "before", "on fresh gold", "labels"]
    return Table(headings, rows) if rows else None


def _memory(runs: Runs) -> Table | None:
    """Each stage's largest peak over all rounds, and its speed."""
    rows = []
    for run in runs:
        stages = [stage for facts in run.rounds for stage in facts.stages]
        for name in dict.fromkeys(stage.name for stage in stages):
            found = [stage for stage in stages if stage.name == name]
            seconds, tokens = sum(stage.seconds for stage in found), sum(stage.tokens or 0 for stage in found)
            peaks = [max((s.memory.get(place, 0) for s in found), default=0) for place in ("process", "device")]
            rows.append(
                [
                    name.replace("_", " ") if len(runs) == 1 else f"{run.name} · {name.replace('_', ' ')}",
                    f"{sum(stage.rows for stage in found):,}",
                    f"{tokens:,}" if tokens else "–",
                    rounded_time(seconds),
                    f"{(tokens or sum(stage.rows for stage in found)) / seconds:,.0f}" if seconds else "–",
                    *(f"{peak / 2**30:.2f}" if peak else "–" for peak in peaks),
                ]
            )
    if not rows:
        return None
    headings = ["stage", "rows", "tokens", "time", "tokens (or rows) a second", "peak memory GiB", "on the device GiB"]
    kept = [place for place in range(len(headings)) if place < 5 or any(row[place] != "–" for row in rows)]
    return Table([headings[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _differences(runs: Runs) -> Table | None:
    """Settings that differ between the runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [run.settings.get(name, "–") for run in runs]
        if name != "name" and len(set(values)) > 1:
            rows.append([name, *values])
    return Table(["setting", *(run.name for run in runs)], rows) if rows else None


def _samples(runs: Runs) -> dict[str, Any] | None:
    """Responses by prompt and place (run and round), for the page's script; and the two places that it shows first."""
    places = [
        (number, round_)
        for number, run in enumerate(runs)
        for round_ in sorted({round_ for sample in run.samples.samples for round_ in sample.responses})
    ]
    if not places:
        return None
    index = {place: order for order, place in enumerate(places)}
    prompts: dict[str, dict[int, list[Any]]] = {}
    for number, run in enumerate(runs):
        for sample in run.samples.samples:
            cells = prompts.setdefault(visible(sample.prompt), {})
            for round_, (text, score) in sample.responses.items():
                cells[index[number, round_]] = [visible(text), score]
    labels = [f"round {r}" if len(runs) == 1 else f"{runs[n].name} · round {r}" for n, r in places]
    held_out = max(run.samples.prompts for run in runs)
    newest = [max(order for (n, _), order in index.items() if n == number) for number in {n for n, _ in places}]
    right = newest[-1]
    left = 0 if len(newest) == 1 else newest[0]
    items = [{"prompt": prompt, "cells": cells} for prompt, cells in prompts.items()]
    return {"places": labels, "left": left, "right": right, "items": items, "held_out": held_out}
