"""What ``prefloop show`` tells below the table of rounds: the report's story in lines of text with small charts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flows.report.facts import PairFacts, RoundFacts
from flows.report.gather import round_facts
from flows.report.sparkline import bar, sparkline
from flows.report.table import make_table_console
from pipeline.config.files import load_config
from pipeline.safe_text import one_line
from pipeline.storage.run_folder import RunFolder
from pipeline.training.progress import StepReport

# Metric and what it is called, where rounds are too many for the table to be read as a curve.
TRENDS = (
    ("reward", "reward"),
    ("win_rate_vs_start", "win rate vs start"),
    ("lc_win_rate_vs_start", "length controlled"),
    ("kl_to_start", "KL to start"),
    ("response_length", "length"),
    ("distinct_2", "variety"),
    ("gap", "labellers' gap"),
)
CURVES: tuple[tuple[str, Callable[[StepReport], float | None]], ...] = (
    ("loss", lambda step: step.loss),
    ("margin", lambda step: step.margin),
    ("chosen, nats/token", lambda step: step.chosen_change_per_token),
    ("rejected, nats/token", lambda step: step.rejected_change_per_token),
    ("gradient norm", lambda step: step.grad_norm),
)
NAME = 22


def print_story(root: Path) -> None:
    """Print it; a part without numbers is left out."""
    console = make_table_console()
    run = RunFolder(root)
    config = load_config([run.config_file])
    rounds = [round_facts(run, config, round_, comparisons=0) for round_ in run.rounds()]
    for title, lines in (
        ("rounds", _trends(rounds)),
        ("training, all steps", _steps(rounds)),
        ("pairs", _pairs(rounds)),
        ("labels", _labels(rounds)),
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
            yield f"{label:<{NAME}}{sparkline(known)}  {known[0]:.4g} to {known[-1]:.4g}"


def _steps(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    steps = [step for facts in rounds if facts.round > 0 and facts.training for step in facts.training.steps]
    for label, read in CURVES:
        known = [value for step in steps if (value := read(step)) is not None]
        if len(known) > 1:
            yield f"{label:<{NAME}}{sparkline(known)}  {known[0]:.4g} to {known[-1]:.4g}"


def _pairs(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    found = [(facts.round, facts.pairs) for facts in rounds if facts.pairs is not None]
    most = max((pairs.rows for _, pairs in found), default=0)
    for round_, pairs in found:
        dropped = ", ".join(f"{cause.replace('_', ' ')} {count:,}" for cause, count in pairs.dropped.items())
        yield f"{f'round {round_}':<{NAME}}{bar(pairs.rows, most)} {pairs.rows:,}" + (
            f"; dropped: {dropped}" if dropped else ""
        )
    if found and found[-1][1].margins.counts:
        yield _margins(*found[-1])


def _margins(round_: int, pairs: PairFacts) -> str:
    edges = pairs.margins.edges
    chart = sparkline([float(count) for count in pairs.margins.counts])
    return f"{f'margins of round {round_}':<{NAME}}{chart}  {edges[0]:.4g} to {edges[-1]:.4g}"


def _labels(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    for facts in rounds:
        for one in facts.labels:
            parts = [f"{one.questions:,} questions"] if one.questions else []
            parts += [f"{one.cache_hit_rate:.0%} from the cache"] if one.cache_hit_rate else []
            parts += [f"{one.missing:,} missing"] if one.missing else []
            parts += [f"orders disagree in {one.orders_that_disagree:.1%}"] if one.orders_that_disagree else []
            parts += [f"spread {one.disagreement:.3g}"] if one.disagreement is not None else []
            parts += [f"cost {one.cost:.4g}"] if one.cost else []
            if parts:
                yield f"{f'round {facts.round} · {one.stage}':<{NAME}}{', '.join(parts)}"
        if facts.discriminator is not None and facts.discriminator.accuracy is not None:
            found = facts.discriminator
            yield f"{f'round {facts.round} · discriminator':<{NAME}}{found.accuracy:.1%} of held-out gold" + (
                f"; does not label: {found.why_not}" if found.why_not else ""
            )


def _stages(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    stages = [stage for facts in rounds for stage in facts.stages]
    names = list(dict.fromkeys(stage.name for stage in stages))
    seconds = {name: sum(stage.seconds for stage in stages if stage.name == name) for name in names}
    for name in names:
        peak = max(max(stage.memory.values(), default=0) for stage in stages if stage.name == name)
        memory = f", {peak / 2**30:.2f} GiB" if peak else ""
        chart = bar(seconds[name], max(seconds.values()))
        yield f"{name.replace('_', ' '):<{NAME}}{chart} {seconds[name]:,.1f} s{memory}"
