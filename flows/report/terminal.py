"""The text that ``prefloop show`` prints below the table of rounds: the report in lines with small charts."""

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.report.charts import bar, sparkline
from flows.report.facts import PairFacts, RoundFacts, cell
from flows.report.findings.columns import COLUMNS, shown_columns
from flows.report.findings.parts import part_table
from flows.report.findings.prompt_changes import worse_in
from flows.report.findings.suites import suite_columns
from flows.report.findings.verdicts import STYLES, verdict_kind, verdict_words
from flows.report.gather import round_facts, suite_metrics
from flows.run_folder.approvals import read_decision, settled
from pipeline.errors import RunError
from pipeline.evaluation.held_out import baseline_line
from pipeline.safe_text import one_line, visible
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import StepCurve, part_curves
from pipeline.training.watch.image_errors import chosen_error, rejected_error
from pipeline.types.counts import number_of

_Metrics = dict[str, Any]


def read_rounds(root: Path) -> list[_Metrics]:
    """Read the metrics.json of every evaluated round, from round 0. Raises ``UserError`` if ``root`` is not a run."""
    run = RunFolder.existing(root)
    rounds = []
    for round_ in run.rounds():
        file = run.stage(round_, "evaluation").folder / "metrics.json"
        if file.is_file():
            metrics = {**suite_metrics(run, round_), **_read_metrics(file)}
            decision = read_decision(run, round_)
            rounds.append(metrics if decision is None else {**metrics, "gate": json.loads(decision.model_dump_json())})
    return rounds


def _read_metrics(file: Path) -> _Metrics:
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("round"), int):
        raise RunError(f"{file}: not the metrics of a round")
    odd = [name for name, _, _ in COLUMNS if not isinstance(metrics.get(name), int | float | None)]
    if odd:
        raise RunError(f"{file}: {odd[0]}: not a number")
    return metrics


def make_table_console() -> Console:
    """A console on standard output, as wide as the terminal, or 120 characters without a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_table(root: Path, rounds: list[_Metrics]) -> None:
    """Print one row per round; columns without any values are left out."""
    console = make_table_console()
    if not rounds:
        console.print(f"{root}: no round has been evaluated yet", markup=False, highlight=False)
        return
    shown = shown_columns(rounds, suite_columns(rounds))
    table = Table(title=Text(visible(root.name)), title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("round", justify="right")
    for _, heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    judged = any("gate" in metrics for metrics in rounds)
    if judged:
        # Wide enough for the longest word; longer decisions take several lines.
        table.add_column("gate", max_width=9)
    for metrics in rounds:
        cells: list[str | Text] = [_cell(metrics, name, form) for name, _, form in shown]
        table.add_row(str(metrics["round"]), *cells, *([_verdict(metrics)] if judged else []))
    console.print(table)
    _print_parts(console, rounds[-1])
    against = baseline_line(rounds[-1])
    for line in (*gate_lines(root), *([] if against is None else [against])):
        console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def _print_parts(console: Console, metrics: _Metrics) -> None:
    """The newest round by source, category and criterion, if it has several; columns below each other if need be."""
    found = part_table([metrics])
    title = f"round {metrics['round']}, by source, category and criterion"
    # Words of a heading, and an estimate and its interval, stand below each other.
    columns = [
        [name.replace(" ", "\n"), *(row[place].replace(" (", "\n(") for row in found.rows[0])]
        for place, name in enumerate(("part", *found.headings))
    ]
    names, rest = columns[0], columns[1:] if found.rows[0] else []
    while rest:
        left = console.width - _wide(names)
        # One column at least, however narrow the terminal is.
        count = max(1, sum(1 for total in accumulate(map(_wide, rest)) if total <= left))
        table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1))
        for shown in (names, *rest[:count]):
            table.add_column(Text(shown[0]), justify="left" if shown is names else "right", no_wrap=True)
        for cells in zip(*(shown[1:] for shown in (names, *rest[:count])), strict=True):
            table.add_row(*map(Text, cells))
        console.print(table)
        rest = rest[count:]


def _wide(column: Sequence[str]) -> int:
    """The width of a column with the space before it."""
    return 1 + max(cell_len(line) for cell in column for line in cell.splitlines())


def _verdict(metrics: _Metrics) -> Text:
    """The gate's decision in its colour."""
    if "gate" not in metrics:
        return Text("–")
    made = metrics["gate"]["decision"], metrics["round"], metrics["gate"]["best_round"]
    return Text(verdict_words(*made), style=STYLES[verdict_kind(*made)])


def _cell(metrics: _Metrics, name: str, form: str) -> str:
    """A value, with its interval below it if it is what the run is judged by."""
    bounds = metrics.get("held_out_accuracy_ci") if name == "held_out_accuracy" else None
    below = f"\n{bounds[0]:.0%}–{bounds[1]:.0%}" if bounds else ""
    return cell(metrics.get(name), form) + below


def gate_lines(root: Path) -> list[str]:
    """The decision of each round's gate and its reasons; and a person's answer, if any."""
    run = RunFolder(root)
    lines = []
    for round_ in run.rounds():
        made, outcome = read_decision(run, round_), settled(run, round_)
        if made is None or outcome is None:
            continue
        words = verdict_words(made.decision, round_, made.best_round)
        lines.append(f"gate, round {round_}: {words}: {'; '.join(made.reasons)}")
        if outcome.answered:
            lines.append(f"gate, round {round_}: answered: {outcome.verdict.replace('_', ' ')}")
    return lines


# Metrics and their labels, for runs with too many rounds to see a curve in the table.
TRENDS = (
    ("reward", "reward"),
    ("win_rate_vs_start", "win rate vs start"),
    ("lc_win_rate_vs_start", "length controlled"),
    ("kl_to_start", "KL to start"),
    ("response_length", "length"),
    ("thinking_tokens", "thinking"),
    ("distinct_2", "variety"),
    ("gap", "labellers' gap"),
)
CURVES: tuple[StepCurve, ...] = (
    ("loss", lambda step: step.loss),
    ("margin", lambda step: step.margin),
    ("chosen, nats per token", lambda step: step.chosen_change_per_token),
    ("rejected, nats per token", lambda step: step.rejected_change_per_token),
    ("gradient norm", lambda step: step.grad_norm),
    ("end token, nats", lambda step: step.ending_logp),
    ("busiest expert, x mean", lambda step: step.expert_imbalance),
    ("router loss", lambda step: step.router_aux_loss),
    ("log-ratio, size a token", lambda step: step.ratio_per_token),
    ("its target, size a token", lambda step: step.target_per_token),
)
# Of images, whose scores are bounds from a few draws.
OF_IMAGES: tuple[StepCurve, ...] = (
    *CURVES[:2],
    ("chosen, error x reference", chosen_error),
    ("rejected, error x ref.", rejected_error),
    ("gradient norm", lambda step: step.grad_norm),
)
_NAME = 26
# How many prompts that got worse are shown, and how many letters of each.
_WORST, _PROMPT = 5, 90


def print_story(root: Path) -> None:
    """Print the report's charts; a part without numbers is left out."""
    console = make_table_console()
    run = RunFolder(root)
    config = run.config()
    rounds = [round_facts(run, config, round_, comparisons=0) for round_ in run.rounds()]
    for title, lines in (
        ("rounds", _trends(rounds)),
        ("training, all steps", [*_steps(rounds), *_notices(rounds)]),
        ("pairs", _pairs(rounds)),
        ("labels", _labels(rounds)),
        ("prompts that got worse", _worse(run, rounds)),
        ("time and peak memory", _stages(rounds)),
    ):
        found = list(lines)
        if found:
            console.print(f"\n{title}", style="bold", markup=False, highlight=False)
            for line in found:
                console.print(f"  {one_line(line)}", markup=False, highlight=False, soft_wrap=True)


def _trends(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    for name, label in TRENDS:
        known = [value for facts in rounds if (value := facts.measured(name)) is not None]
        if len(known) > 1:
            yield f"{label:<{_NAME}}{sparkline(known)}  {known[0]:.4g} to {known[-1]:.4g}"


def _steps(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    steps = [step for facts in rounds if facts.round > 0 and facts.training for step in facts.training.steps]
    parts = [(f"of it {name}", read) for name, read in part_curves(steps)]
    images = any("image_kl_to_start" in facts.metrics for facts in rounds)
    curves = OF_IMAGES if images else CURVES
    for label, read in (*curves[:1], *parts, *curves[1:]):
        known = [value for step in steps if (value := read(step)) is not None]
        if len(known) > 1:
            yield f"{label:<{_NAME}}{sparkline(known)}  {known[0]:.4g} to {known[-1]:.4g}"


def _notices(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    """Alarms, early ends and kept weights of each round's training."""
    for facts in rounds:
        if facts.training is not None:
            yield from (f"round {facts.round}: {notice}" for notice in facts.training.notices())


def _pairs(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    found = [(facts.round, facts.pairs) for facts in rounds if facts.pairs is not None]
    most = max((pairs.rows for _, pairs in found), default=0)
    for round_, pairs in found:
        dropped = ", ".join(f"{cause.replace('_', ' ')} {count:,}" for cause, count in pairs.dropped.items())
        yield f"{f'round {round_}':<{_NAME}}{bar(pairs.rows, most)} {pairs.rows:,}" + (
            f"; dropped: {dropped}" if dropped else ""
        )
    if found and found[-1][1].margins.counts:
        yield _margins(*found[-1])


def _margins(round_: int, pairs: PairFacts) -> str:
    edges = pairs.margins.edges
    chart = sparkline([float(count) for count in pairs.margins.counts])
    return f"{f'margins of round {round_}':<{_NAME}}{chart}  {edges[0]:.4g} to {edges[-1]:.4g}"


def _labels(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    for facts in rounds:
        for one in facts.labels:
            parts = [number_of(one.questions, "question")] if one.questions else []
            parts += [f"{one.cache_hit_rate:.0%} from the cache"] if one.cache_hit_rate else []
            parts += [f"{one.missing:,} missing"] if one.missing else []
            parts += (
                [f"{number_of(one.broken, 'text spells', 'texts spell')} control tokens (read as text)"]
                if one.broken
                else []
            )
            parts += [f"orders disagree in {one.orders_that_disagree:.1%}"] if one.orders_that_disagree else []
            parts += [f"spread {one.disagreement:.3g}"] if one.disagreement is not None else []
            parts += [f"cost {one.cost:.4g}"] if one.cost else []
            if parts:
                yield f"{f'round {facts.round} · {one.stage}':<{_NAME}}{', '.join(parts)}"
        if facts.discriminator is not None and facts.discriminator.accuracy is not None:
            found = facts.discriminator
            yield f"{f'round {facts.round} · discriminator':<{_NAME}}{found.accuracy:.1%} of held-out gold" + (
                f"; does not label: {found.why_not}" if found.why_not else ""
            )


def _worse(run: RunFolder, rounds: Sequence[RoundFacts]) -> Iterator[str]:
    evaluated = [facts.round for facts in rounds if facts.metrics]
    found = worse_in(run, evaluated[-1]) if evaluated else None
    if found is not None:
        yield found.sentences
        for trait in found.traits:
            shares = f"{trait.worse.mean:.0%} got worse, {trait.others.mean:.0%} of the others"
            yield f"{trait.name:<{_NAME}}{number_of(trait.prompts, 'prompt')}, {shares}, change {trait.change:+.3g}"
        for one in found.examples[:_WORST]:
            yield f"{f'{one.before:.3g} to {one.after:.3g}':<{_NAME}}{one_line(one.prompt, _PROMPT)}"


def _stages(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    stages = [stage for facts in rounds for stage in facts.stages]
    names = list(dict.fromkeys(stage.name for stage in stages))
    seconds = {name: sum(stage.seconds for stage in stages if stage.name == name) for name in names}
    for name in names:
        peak = max(max(stage.memory.values(), default=0) for stage in stages if stage.name == name)
        memory = f", {peak / 2**30:.2f} GiB" if peak else ""
        chart = bar(seconds[name], max(seconds.values()))
        yield f"{name.replace('_', ' '):<{_NAME}}{chart} {seconds[name]:,.1f} s{memory}"
