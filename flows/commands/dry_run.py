"""``prefloop run --dry-run``: which stages there are, and which would run; starts and writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flows.loop.rounds import Reached, added, labelled, learn, start_run
from flows.report.terminal import make_table_console
from flows.run_folder.growth import ADDED
from flows.run_folder.stage_keys import stage_key
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.storage.run_folder import RunFolder


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its key as 16 hexadecimal digits, and ``done``, ``begun``, ``to do`` or ``other settings``.

    ``why`` names the settings and inputs in which what is there differs.
    """

    title: str
    key: str
    state: str
    why: str = ""


class _Recorder:
    """Takes the place of the stages of a flow, and only writes down which are asked for, and under which keys."""

    def __init__(self, run: RunFolder, config: RunConfig, until: str | None) -> None:
        self._run, self._config, self._until = run, config, until
        self._keys: dict[str, str] = {}
        self.planned: list[PlannedStage] = []

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        stage = self._run.stage(round_, name)
        key = stage_key(self._run, self._config, round_, name, self._keys)
        self._keys[stage.title] = key.digest
        state, why = "begun" if stage.partial.exists() else "to do", ""
        try:
            if stage.complete(key):
                state = "done"
        except UserError as error:
            # The first line names the folder, which the row does, too.
            state, why = "other settings", ", ".join(line.strip() for line in str(error).splitlines()[1:])
        self.planned.append(PlannedStage(stage.title, key.digest, state, why))
        if f"{round_}:{name}" == self._until:
            raise Reached
        return stage.title


def planned_stages(config: RunConfig, root: Path, until: str | None = None) -> list[PlannedStage]:
    """The stages of the run in the order in which they run, up to ``until``; decisions of gates are not foreseen.

    Raises:
        UserError: a file that a key depends on is not there.
        RunError: what is there cannot be read.
    """
    run = RunFolder(root)
    stages = _Recorder(run, config, until)
    try:
        _, policy = start_run(stages)
        for round_ in range(1, config.rounds + 1):
            made = ""
            if config.mode == "iterative":
                samples = stages("samples", round_, *_added(stages, run, config, round_), policy)
                made = labelled(stages, config, round_, samples)
            policy = learn(stages, config, round_, stages("pairs", round_, made), policy)
    except Reached:
        pass
    return stages.planned


def _added(stages: _Recorder, run: RunFolder, config: RunConfig, round_: int) -> list[str]:
    """What the next round will take up, rounds after it have."""
    planned = any(one.title.endswith(f"/{ADDED}") and one.state != "done" for one in stages.planned)
    return [] if planned else added(stages, run, config, round_)


def print_dry_run(config: RunConfig, root: Path, until: str | None) -> None:
    """Print them. Raises as ``planned_stages``."""
    found = planned_stages(config, root, until)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("stage", "key", "state"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        table.add_row(one.title, one.key, one.state)
    console = make_table_console()
    console.print(table)
    for one in found:
        if one.why:
            console.print(f"{one.title} was made with other settings: {one.why}", markup=False, highlight=False)
    left = sum(one.state != "done" for one in found)
    console.print(
        f"{left} of {len(found)} stages would run in {root}; nothing was started", markup=False, highlight=False
    )
