"""Tables of the page: rounds, labels, memory, and what differs between runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.report.facts import LabelFacts, RoundFacts, cell
from flows.report.findings.columns import shown_columns
from flows.report.findings.parts import part_table
from flows.report.findings.suites import suite_columns, suite_measures, suite_value
from flows.report.html.panel import Runs
from flows.report.html.run_facts import RunFacts
from pipeline.safe_text import one_line

# Letters shown of a prompt in a table.
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Table:
    """Displayed cells under their headings; the first column is text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def rounds_table(runs: Runs) -> Table:
    """A row for each evaluated round; columns without any values are left out."""
    everything = [facts for run in runs for facts in run.evaluated]
    metrics = [facts.metrics for facts in everything]
    shown = shown_columns(metrics, suite_columns(metrics))
    rows = [
        [round_place(runs, run, facts), *(cell(facts.metrics.get(name), form) for name, _, form in shown)]
        for run in runs
        for facts in run.evaluated
    ]
    return Table(["round", *(heading.replace("\n", " ") for _, heading, _ in shown)], rows)


def round_place(runs: Runs, run: RunFacts, facts: RoundFacts) -> str:
    """The round's name on the page."""
    return str(facts.round) if len(runs) == 1 else f"{run.name} · {facts.round}"


def suites_table(runs: Runs) -> Table | None:
    """All metrics of standard evaluations, with their intervals."""
    everything = [facts for run in runs for facts in run.evaluated]
    places = [round_place(runs, run, facts) for run in runs for facts in run.evaluated]
    rows = [
        [title, *(suite_value(facts, key, form) for facts in everything)]
        for key, title, form in suite_measures(everything)
    ]
    return Table(["suite", *(f"round {place}" for place in places)], rows) if rows else None


def parts_table(runs: Runs) -> Table | None:
    """The newest round's measures by source, category and criterion."""
    newest = [(run, run.evaluated[-1]) for run in runs if run.evaluated]
    found = part_table([facts.metrics for _, facts in newest])
    rows = [
        [round_place(runs, run, facts), *row] for (run, facts), of in zip(newest, found.rows, strict=True) for row in of
    ]
    return Table(["round", "part", *found.headings], rows) if rows else None


def labels_table(runs: Runs) -> Table | None:
    """Stages with a labeller that costs money or may fail; rules always answer, and always the same."""
    rows = [
        [round_place(runs, run, facts), one.stage, *_asked(one)]
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


def criteria_table(runs: Runs) -> Table | None:
    """Mean scores by the criteria of prompts' rubrics."""
    rows = [
        [round_place(runs, run, facts), one_line(criterion, 160), f"{told['mean']:.3f}", f"{told['labels']:,}"]
        for run in runs
        for facts in run.rounds
        for one in facts.labels
        for criterion, told in one.criteria.items()
    ]
    return Table(["round", "criterion", "mean score", "responses"], rows) if rows else None


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


def discriminator_table(runs: Runs) -> Table | None:
    """A row for each round with a discriminator."""
    rows = []
    for run in runs:
        for facts in run.rounds:
            found = facts.discriminator
            if found is not None:
                accuracies = (found.accuracy, found.previous_accuracy, found.fresh_accuracy)
                counts = [cell(count, "{:,}") for count in (found.bought, found.gold, found.silver)]
                labels = "yes" if found.why_not is None else f"no: {found.why_not}"
                rows.append([round_place(runs, run, facts), *counts, *(cell(a, "{:.1%}") for a in accuracies), labels])
    headings = ["round", "gold bought", "gold", "silver", "accuracy", "before", "on fresh gold", "labels"]
    return Table(headings, rows) if rows else None


def memory_table(runs: Runs) -> Table | None:
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
    # Images have no tokens.
    counted = any(row[2] != "–" for row in rows)
    each = "tokens (or rows) a second" if counted else "rows a second"
    headings = ["stage", "rows", "tokens", "time", each, "peak memory GiB", "on the device GiB"]
    shown = {0, 1, 3, 4} | ({2} if counted else set())
    kept = [place for place in range(len(headings)) if place in shown or any(row[place] != "–" for row in rows)]
    return Table([headings[place] for place in kept], [[row[place] for place in kept] for row in rows])


def pass_lines(runs: Runs) -> list[str]:
    """How each run's newest training computed its rows, why, and what it cost."""
    newest = [(run, next((one for one in reversed(run.trained) if one.training is not None), None)) for run in runs]
    told = [(run, facts.training.passes) for run, facts in newest if facts is not None and facts.training is not None]
    return [f"{run.name}: {line}" if len(runs) > 1 else f"In training {line}." for run, line in told if line]


def _value(run: RunFacts, name: str) -> str:
    """The value of a setting; ``given`` for a section that another run has switched off."""
    inside = any(other.startswith(f"{name}.") for other in run.settings)
    return run.settings.get(name, "given" if inside else "–")


def differences_table(runs: Runs) -> Table | None:
    """Settings that differ between the runs; those that are defaults in all runs that have them are left out."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [_value(run, name) for run in runs]
        if name != "name" and len(set(values)) > 1 and any(name in run.given or "given" in values for run in runs):
            rows.append([name, *values])
    return Table(["setting", *(run.name for run in runs)], rows) if rows else None


def rounded_time(seconds: float) -> str:
    """Time in the largest unit that gives a number of at least 1."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def worse_parts(runs: Runs) -> list[tuple[str, str, Table | None, Table | None]]:
    """For each run its name, which prompts got worse in words, and tables of their traits and of the worst ones."""
    found = []
    for run in runs:
        if run.worse is not None:
            traits = [
                [
                    one.name,
                    f"{one.prompts:,}",
                    f"{one.worse.mean:.0%} ({one.worse.low:.0%} to {one.worse.high:.0%})",
                    f"{one.others.mean:.0%} ({one.others.low:.0%} to {one.others.high:.0%})",
                    f"{one.change:+.3g}",
                ]
                for one in run.worse.traits
            ]
            worst = [
                [one_line(one.prompt, _SHOWN), f"{one.before:.3g}", f"{one.after:.3g}", f"{one.change:+.3g}"]
                for one in run.worse.examples
            ]
            headings = ("prompts with", "prompts", "got worse", "of the others", f"change of {run.worse.measure}")
            last = ("prompt", "at the start", f"round {run.worse.round}", "change")
            tables = (Table(headings, traits) if traits else None, Table(last, worst) if worst else None)
            found.append((run.name, run.worse.sentences, *tables))
    return found
