"""A plan as tables for people."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from flows.planning.arithmetic import KINDS
from flows.planning.disk import DiskUse
from flows.planning.plan import Plan, RunEstimate
from flows.planning.rates.suites import suite_rows_shown
from flows.workers.pool.label_engine import label_seats
from flows.workers.pool.overlap import overlap_lines
from flows.workers.pool.seating import seating_of
from pipeline.training.distributed.launch import read_launch
from pipeline.types.counts import number_of

_COLUMNS = ("weights", "gradients", "gradient sums", "optimiser", "activations", "engine", "whole policy", "processes")
_NAMES = {"memory": "memory", "device": "memory of the accelerator", "disk": "disk"}


def print_plan(plan: Plan) -> None:
    """Parameters, memory by stage, disk, time, and whether all of it fits."""
    console = plan_console()
    for line in _heading(plan):
        console.print(line, soft_wrap=True)
    print_sizes(console, plan, _COLUMNS)
    print_columns(
        console, ["a round", "tokens", *(["tokens/s", "seconds"] if plan.rates_from else [])], _time_rows(plan)
    )
    if plan.suites:
        rates = plan.rates if plan.rates_from else None
        timed = ["seconds"] if plan.rates_from else []
        heading = ["beside it", "rounds", "rows", "tokens at most", "labels", "judge calls", *timed]
        print_columns(console, heading, suite_rows_shown(plan.suites, rates))
    for line in (*_time_notes(plan), *_verdict(plan)):
        console.print(line, soft_wrap=True)


def plan_console() -> Console:
    """A console that writes plain text; 120 columns where there is no terminal."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def print_sizes(console: Console, plan: RunEstimate, columns: Sequence[str]) -> None:
    """Print memory by stage, with those of ``columns`` that a stage has, and what is on disk."""
    shown = [name for name in columns if any(name in stage.parts for stage in plan.stages)]
    print_columns(console, ["stage", *shown, "all"], _memory_rows(plan, shown))
    print_columns(console, ["on disk", "size"], _disk_rows(plan.disk, plan.config.rounds))


def room_lines(plan: RunEstimate) -> list[str]:
    """One line for each resource that may run out: whether there is enough of it."""
    free = {"memory": plan.room.memory, "device": plan.room.device or 0, "disk": plan.room.disk}
    lines = []
    for name, size in plan.needed.items():
        said = "fits" if size <= free[name] else "does not fit"
        lines.append(f"{_NAMES[name]}: {in_units(size)} of {in_units(free[name])} free: {said}")
    return lines


def _verdict(plan: Plan) -> list[str]:
    lines = []
    if any("gradients" in stage.parts and "activations" not in stage.parts for stage in plan.stages):
        lines.append("Activations come on top: there is too little memory to measure even a few layers.")
    return [*lines, *room_lines(plan)]


def in_units(size: float) -> str:
    """Bytes in the largest unit in which they are at least one."""
    for unit, of in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= of:
            return f"{size / of:,.1f} {unit}"
    return f"{size:.0f} B"


def _heading(plan: Plan) -> list[str]:
    config, counts, parameters = plan.config, plan.counts, plan.parameters
    sampled = (
        f"{number_of(counts.prompts, 'prompt')} x {number_of(counts.responses, 'response')}, " if counts.prompts else ""
    )
    beside = f", {parameters.beside:,} in heads and critics" if parameters.beside else ""
    engines = label_seats(config, seating_of(config).rest)
    seats = "; ".join(seat.where for seat in engines)
    pooled = [f"labelling: {number_of(len(engines), 'engine')} ({seats}) for each local model"]
    launch = read_launch(config)
    lone = config.discriminator is not None and launch is not None and launch.processes > 1
    return [
        f"{config.name}: {config.mode}, {number_of(config.rounds, 'round')} of {sampled}"
        f"{number_of(counts.examples, 'example')} at most",
        f"parameters: {parameters.total:,}, {parameters.trained:,} of them trained{beside}",
        plan.passes.tokens.line(plan.passes.padded_because),
        *plan.placement,
        *(pooled if len(engines) > 1 else []),
        *(["discriminator: one of the training processes trains it"] if lone else []),
        *overlap_lines(config),
        *plan.notes,
        "",
    ]


def _memory_rows(plan: RunEstimate, columns: Sequence[str]) -> list[list[str]]:
    rows = []
    for stage in plan.stages:
        parts = [in_units(stage.parts[name]) if name in stage.parts else "" for name in columns]
        rows.append([stage.stage, *parts, in_units(sum(stage.parts.values()))])
    return rows


def _disk_rows(disk: DiskUse, rounds: int) -> list[list[str]]:

    def rows(title: str, sizes: Mapping[str, int]) -> list[list[str]]:
        return [[f"{title}: {name}", in_units(size)] for name, size in sizes.items()]

    whole = [f"the run, {number_of(rounds, 'round')}", in_units(disk.whole(rounds))]
    parts = [*rows("start", disk.start), *rows("a round", disk.round), *rows("while training", disk.passing)]
    masters = rows("the newest round", {"float32 masters": disk.masters} if disk.masters else {})
    return [*parts, *masters, whole]


def _time_rows(plan: Plan) -> list[list[str]]:
    tokens, took = plan.work, plan.seconds
    if plan.rates_from is None:
        return [[name, f"{count:,.0f}"] for name, count in (*tokens.items(), ("all", sum(tokens.values())))]
    rows = []
    for name in KINDS:
        rate = tokens[name] / took[name] if took[name] else None  # type: ignore[operator]
        shown = "?" if took[name] is None else f"{took[name]:,.1f}"
        rows.append([name, f"{tokens[name]:,.0f}", "" if rate is None else f"{rate:,.0f}", shown])
    known = [value for value in took.values() if value is not None]
    whole = f"{sum(known):,.1f}" if len(known) == len(took) else "?"
    return [*rows, ["all", f"{sum(tokens.values()):,.0f}", "", whole]]


def _time_notes(plan: Plan) -> list[str]:
    if plan.rates_from is None:
        return ["No rate is known: --probe measures them here, --rates gives them.", ""]
    lines = [f"Rates are {plan.rates_from}. Process starts and files come on top."]
    if "scoring" not in plan.rates:
        lines.append("Scoring is assumed to be three times as fast as training, whose passes do three times the work.")
    launch = read_launch(plan.config)
    if launch is not None and launch.processes > 1:
        lines.append(f"Rates are of one process; training and scoring run in {launch.processes} at a time.")
    return [*lines, ""]


def print_columns(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headings, numbers to the right of the first column, and an empty line."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
