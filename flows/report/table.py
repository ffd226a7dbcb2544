"""The table of rounds, in the terminal and as plain data."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.report.rounds_table import COLUMNS, cell
from flows.run_folder.approvals import read_decision, settled
from pipeline.safe_text import one_line, visible
from pipeline.storage.run_folder import RunFolder
from pipeline.types import RunError, UserError

Metrics = dict[str, Any]


def read_rounds(root: Path) -> list[Metrics]:
    """The metrics.json of every evaluated round, round 0 first. Raises ``UserError`` if ``root`` is no run."""
    run = RunFolder(root)
    if not run.config_file.is_file():
        raise UserError(f"{root}: not a run folder (no config.yaml)")
    rounds = []
    for round_ in run.rounds():
        file = run.stage(round_, "evaluation").folder / "metrics.json"
        if file.is_file():
            metrics, decision = _read_metrics(file), read_decision(run, round_)
            rounds.append(metrics if decision is None else {**metrics, "gate": json.loads(decision.model_dump_json())})
    return rounds


def _read_metrics(file: Path) -> Metrics:
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
    """Standard output; as wide as the terminal, or 120 characters where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_table(root: Path, rounds: list[Metrics]) -> None:
    """Print one row a round; columns that no round has are left out."""
    console = make_table_console()
    if not rounds:
        console.print(f"{root}: no round is evaluated yet", markup=False, highlight=False)
        return
    shown = [column for column in COLUMNS if any(metrics.get(column[0]) is not None for metrics in rounds)]
    table = Table(title=Text(visible(root.name)), title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("round", justify="right")
    for _, heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for metrics in rounds:
        cells = [cell(metrics.get(name), form) for name, _, form in shown]
        table.add_row(str(metrics["round"]), *cells)
    console.print(table)
    for line in gate_lines(root):
        console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def gate_lines(root: Path) -> list[str]:
    """What the gate of each round decided, and why; and what a person answered."""
    run = RunFolder(root)
    lines = []
    for round_ in run.rounds():
        made, outcome = read_decision(run, round_), settled(run, round_)
        if made is None or outcome is None:
            continue
        lines.append(f"gate, round {round_}: {made.decision.replace('_', ' ')}: {'; '.join(made.reasons)}")
        if outcome.answered:
            lines.append(f"gate, round {round_}: answered: {outcome.verdict.replace('_', ' ')}")
    return lines
