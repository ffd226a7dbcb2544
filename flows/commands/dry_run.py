"""``prefloop run --dry-run``: list all stages and which would run; starts and writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flows.loop.rounds import Reached, Stages, added, labelled, learn, start_run
from flows.report.terminal import make_table_console
from flows.run_folder.growth import ADDED
from flows.run_folder.stage_keys import stage_key
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.storage.layout import require_known
from pipeline.storage.run_folder import RunFolder


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its key as 16 hexadecimal digits, and ``done``, ``begun``, ``to do`` or ``other settings``.

    ``why`` names the settings and inputs that differ from those on disk.
    """

    title: str
    key: str
    state: str
    why: str = ""


class _Recorder(Stages):
    """Stand-in for a flow's stages that only records which are called, and with which keys."""

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
            # Skip the first line: it names the folder, as the row does.
            state, why = "other settings", ", ".join(line.strip() for line in str(error).splitlines()[1:])
        self.planned.append(PlannedStage(stage.title, key.digest, state, why))
        if f"{round_}:{name}" == self._until:
            raise Reached
        return stage.title


def planned_stages(config: RunConfig, root: Path, until: str | None = None) -> list[PlannedStage]:
    """List the run's stages in order, up to ``until``; gate decisions are not predicted.

    Raises:
        UserError: a file that a key depends on is missing, or ``root`` is of a later version.
        RunError: an existing stage cannot be read.
    """
    require_known(root)
    run = RunFolder(root)
    stages = _Recorder(run, config, until)
    try:
        _, policy = start_run(stages, config)
        for round_ in range(1, config.rounds + 1):
            made = ""
            if config.mode == "iterative":
                made = labelled(stages, config, round_, *_added(stages, run, config, round_), policy)
            policy = learn(stages, config, round_, stages("pairs", round_, made), policy)
    except Reached:
        pass
    return stages.planned


def _added(stages: _Recorder, run: RunFolder, config: RunConfig, round_: int) -> list[str]:
    """New prompts that the next round takes up are not added again by later rounds."""
    planned = any(one.title.endswith(f"/{ADDED}") and one.state != "done" for one in stages.planned)
    return [] if planned else added(stages, run, config, round_)


def print_dry_run(config: RunConfig, root: Path, until: str | None) -> None:
    """Print the planned stages. Raises like ``planned_stages``."""
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
