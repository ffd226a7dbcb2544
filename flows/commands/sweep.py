"""``prefloop sweep``: a run for each combination of some settings' values, one after the other, and one report of all.

Every run has a folder of its own under the sweep's, so all share the label cache and the reference cache. All go
through round 1, then those that are left through round 2, and so on; a run that is surely worse than the best one goes
no further. Everything is read from the run folders, so the same command continues a sweep that was stopped or killed.
"""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.prefect_api.starting import start_watched, stop_watched
from flows.preflight.check import check_run
from flows.preflight.understand import understood
from flows.report.terminal import make_table_console, read_rounds
from flows.report.write import report_runs
from flows.run_folder.approvals import read_decision, settled
from flows.run_folder.stage_table import made_in, names_in
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.errors import RunError, UserError
from pipeline.safe_text import visible
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed.launch import read_launch
from pipeline.types.counts import number_of

# Exit codes of a run, besides 0.
PAUSED, INTERRUPTED = 3, 130
# What runs are compared by: the first that all of them measure, and its format.
COMPARED_BY = (("held_out_accuracy", "{:.1%}"), ("win_rate_vs_start", "{:.1%}"), ("reward", "{:.3f}"))
_LOG_LINES = 12
# ``flows``, or its name in a wheel.
_PROGRAM = __name__.removesuffix(".commands.sweep")
# Time for a run to end its children.
_STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting with several values, as they were given."""

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the sweep: its values in the order of the axes, settings and folder."""

    values: tuple[str, ...]
    settings: tuple[str, ...]
    config: RunConfig
    root: Path

    def has_finished(self, round_: int) -> bool:
        """Whether the folder holds the round's last stage, made by this config."""
        run = RunFolder(self.root)
        if not run.config_file.is_file() or run.config() != self.config:
            return False
        return run.stage(round_, self.last_stage(round_)).manifest() is not None

    def last_stage(self, round_: int) -> str:
        """The name of the round's last stage."""
        return [name for name in names_in(self.config, round_) if made_in(self.config, round_, name)][-1]


@dataclass(slots=True)
class Entrant:
    """How far a trial has come: the metrics of its newest round, and why it goes no further, if so."""

    trial: Trial
    metrics: dict[str, Any]
    ended: str = ""
    failed: bool = False


def split_axes(settings: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """Split settings into axes, which list values with commas, and others. A value in brackets is a single one."""
    axes, plain = [], []
    for text in settings:
        name, _, value = text.partition("=")
        values = tuple(part.strip() for part in value.split(","))
        if len(values) == 1 or value.lstrip()[:1] in ("[", "{", "'", '"'):
            plain.append(text)
            continue
        if not all(values) or len(set(values)) < len(values):
            raise UserError(f"{text}: the values of a sweep must be different, with a comma between each two")
        axes.append(Axis(name.strip(), values))
    if not axes:
        raise UserError("sweep: no setting has several values; such as training.learning_rate=1e-7,3e-7,1e-6")
    return axes, plain


def run_sweep(files: list[Path], settings: list[str], root: Path | None, steps: int | None, dry: bool = False) -> int:
    """Run the sweep; print its table and the path of its report.

    Args:
        root: the sweep's folder; default: runs/NAME-sweep.
        steps: the most training steps of each round.
        dry: only list the runs, and how many rounds of each are there; writes nothing.

    Returns:
        The exit code: 1 if a run failed, else 0.

    Raises:
        UserError: a mistake in the config or data of any of the runs, before the first one starts.
        RunError: a run was ended from outside.
    """
    axes, plain = split_axes(settings)
    plain += [] if steps is None else [f"training.max_steps={steps}"]
    trials = [
        replace(trial, config=understood(trial.config, trial.root)[0])
        for trial in list(_trials(files, axes, plain, root))
    ]
    for trial in trials:
        launch = read_launch(trial.config)
        if launch is not None and launch.machines > 1:
            raise UserError(
                f"{trial.config.accelerate}: num_machines: {launch.machines}; allowed in a sweep: 1, since the other "
                "machines follow one run"
            )
        if not RunFolder(trial.root).config_file.is_file():
            check_run(trial.config)
    if dry:
        _list_runs(axes, trials)
        return 0
    place = trials[0].root.parent
    count = trials[0].config.rounds
    print(f"{number_of(len(trials), 'run')} of {number_of(count, 'round')} -> {place}", file=sys.stderr)
    entrants = [Entrant(trial, {}) for trial in trials]
    for round_ in range(1, trials[0].config.rounds + 1):
        _run_round(files, entrants, round_)
        _end_losers(entrants, round_)
    _print_table(place, axes, entrants)
    made = [entrant.trial.root for entrant in entrants if RunFolder(entrant.trial.root).config_file.is_file()]
    if made:
        print(f"report: {report_runs(made, place / 'report.html')}")
    return int(any(entrant.failed for entrant in entrants))


def _list_runs(axes: Sequence[Axis], trials: Sequence[Trial]) -> None:
    for trial in trials:
        values = ", ".join(f"{axis.setting}={value}" for axis, value in zip(axes, trial.values, strict=True))
        rounds = range(1, trial.config.rounds + 1)
        made = sum(1 for _ in itertools.takewhile(trial.has_finished, rounds))
        print(visible(f"{trial.root.name}: {values}; rounds that are there: {made} of {len(rounds)}"))
    print(f"{number_of(len(trials), 'run')} in {trials[0].root.parent}")


def _trials(files: list[Path], axes: Sequence[Axis], plain: Sequence[str], root: Path | None) -> Iterator[Trial]:
    short = [axis.setting.rpartition(".")[2] for axis in axes]
    names = short if len(set(short)) == len(short) else [axis.setting for axis in axes]
    seen: set[str] = set()
    for values in itertools.product(*(axis.values for axis in axes)):
        given = [*plain, *(f"{axis.setting}={value}" for axis, value in zip(axes, values, strict=True))]
        config = load_config(files, given)
        label = "_".join(
            re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{value}") for name, value in zip(names, values, strict=True)
        ).replace("..", ".")
        if label in seen or len(f"{config.name}-{label}") > 100:
            label = f"run-{len(seen) + 1}"
        seen.add(label)
        settings = (*given, f"name={config.name}-{label}")
        folder = (root or Path("runs") / f"{config.name}-sweep").resolve() / label
        yield Trial(values, settings, load_config(files, settings), folder)


def _run_round(files: list[Path], entrants: Sequence[Entrant], round_: int) -> None:
    """Take every entrant that goes on through the round."""
    going = [entrant for entrant in entrants if not entrant.ended]
    for number, entrant in enumerate(going, 1):
        trial, run = entrant.trial, RunFolder(entrant.trial.root)
        if not trial.has_finished(round_):
            print(f"round {round_}, run {number} of {len(going)}: {trial.root.name}", file=sys.stderr)
            _advance(files, entrant, round_)
        if not run.config_file.is_file():
            continue
        # Of this round, though the folder may hold later ones: a sweep that goes on judges as it had.
        entrant.metrics = next((found for found in read_rounds(trial.root) if found["round"] == round_), {})
        made, outcome = read_decision(run, round_), settled(run, round_)
        if not entrant.ended and made is not None and outcome is not None and outcome.verdict in ("pause", "stop"):
            entrant.ended = f"round {round_}: {outcome.verdict}: {'; '.join(made.reasons)}"


def _advance(files: list[Path], entrant: Entrant, round_: int) -> None:
    """Run the trial up to the end of the round, in a process of its own whose output goes to a log file."""
    trial = entrant.trial
    until = [] if round_ == trial.config.rounds else ["--until", f"{round_}:{trial.last_stage(round_)}"]
    log = trial.root.with_name(f"{trial.root.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [*map(str, files), *trial.settings, "--run-dir", str(trial.root), *until]
    with log.open("ab") as output:
        place = output.tell()
        run = start_watched([sys.executable, "-m", _PROGRAM, "run", *words], {}, output.fileno())
        try:
            code = run.wait()
        finally:
            stop_watched(run, _STOP_SECONDS)
    if code in (0, PAUSED):
        return
    told = log.read_bytes()[place:].decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
    message = "\n".join([f"{trial.root.name}: exit code {code}; {log} ends with", *(f"  {line}" for line in told)])
    if code == INTERRUPTED:
        raise RunError(message)
    print(visible(message), file=sys.stderr)
    entrant.ended, entrant.failed = f"round {round_}: failed, see {log.name}", True


def _end_losers(entrants: Sequence[Entrant], round_: int) -> None:
    """End the runs whose whole interval is below the best run's."""
    name, form = measure_of(entrants)
    going = [entrant for entrant in entrants if not entrant.ended and entrant.metrics.get(f"{name}_ci")]
    if not going:
        return
    best = max(going, key=lambda entrant: float(entrant.metrics[name]))
    low = best.metrics[f"{name}_ci"][0]
    for entrant in going:
        high = entrant.metrics[f"{name}_ci"][1]
        if high < low:
            compared = f"{name.replace('_', ' ')} surely below {best.trial.root.name}'s"
            entrant.ended = f"round {round_}: {compared} ({form.format(high)} < {form.format(low)})"


def measure_of(entrants: Sequence[Entrant]) -> tuple[str, str]:
    """The metric that runs are compared by, and its format."""
    known = [entrant.metrics for entrant in entrants if entrant.metrics]
    for name, form in COMPARED_BY:
        if known and all(metrics.get(name) is not None for metrics in known):
            return name, form
    return COMPARED_BY[-1]


def _print_table(place: Path, axes: Sequence[Axis], entrants: Sequence[Entrant]) -> None:
    name, form = measure_of(entrants)
    table = Table(title=Text(visible(place.name)), title_justify="left", box=None, padding=(0, 0, 0, 1))
    for axis in axes:
        table.add_column(Text(axis.setting), justify="right")
    shown = [(name, form), ("held_out_margin", "{:.3f}"), ("kl_to_start", "{:.3f}"), ("round", "{}")]
    shown = [(key, one) for key, one in shown if any(entrant.metrics.get(key) is not None for entrant in entrants)]
    for key, _ in shown:
        table.add_column(key.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("ended")
    for entrant in sorted(entrants, key=lambda entrant: -_number(entrant.metrics.get(name))):
        cells = [_cell(entrant.metrics, key, one) for key, one in shown]
        table.add_row(*map(Text, entrant.trial.values), *cells, Text(visible(entrant.ended)))
    make_table_console().print(table)


def _cell(metrics: dict[str, Any], key: str, form: str) -> str:
    value, bounds = metrics.get(key), metrics.get(f"{key}_ci")
    if value is None:
        return "–"
    return form.format(value) + ("" if not bounds else f" [{form.format(bounds[0])}, {form.format(bounds[1])}]")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("-inf")
