"""Sets stages aside, so that they are made again: the named stage and all that depend on it. Deletes nothing.

The list of moves is written first; they go from the last stage to the first. A kill in between leaves the list, and
the next opening of the run does the remaining moves before anything else.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from flows.run_folder.approvals import approvals
from flows.run_folder.inputs import Place, masters_read_by
from flows.run_folder.links import inside
from flows.run_folder.stage_table import STAGES, inputs_of, names_in, reads
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError, nearest
from pipeline.storage.atomic import sync_folder, write_json
from pipeline.storage.integrity import is_master
from pipeline.storage.run_folder import RunFolder, Stage

FOLDER, MOVES = "set_aside", "moves.json"


def parse_stage(option: str, text: str, config: RunConfig) -> tuple[int, str]:
    """Split ``ROUND:STAGE`` into its two parts. Raises ``UserError`` if the run has no such stage."""
    round_, _, name = text.partition(":")
    start, in_round = (names_in(config, number) for number in (0, 1))
    stages = start if round_ == "0" else in_round
    if not round_.isdecimal() or int(round_) > config.rounds or name not in stages:
        raise UserError(
            f"{option}: {text}: not ROUND:STAGE with a round from 0 to {config.rounds} and a stage of "
            f"{', '.join(start)} (round 0) or {', '.join(in_round)}{nearest(name, stages)}"
        )
    return int(round_), name


def set_aside(run: RunFolder, config: RunConfig, round_: int, stage: str) -> list[str]:
    """Move the stage, and all that was made from it, to ``set_aside/TIME/`` of the run folder; return their titles.

    The caller holds the run. People's answers and approvals move with their stages.

    Raises:
        UserError: there is nothing to move, or an input was removed to free disk space.
        RunError: a move failed; the next opening of the run continues it.
    """
    finish_setting_aside(run)
    named = run.stage(round_, stage)
    gone = dependents(run, config, named)
    moved = [path for path in _paths(run, gone) if path.exists()]
    if not moved:
        raise UserError(f"--from {round_}:{stage}: {named.folder} does not exist, and nothing was made from it")
    _refuse_freed(run, config, gone)
    place = _new_place(run)
    write_json(place / MOVES, {"from": named.title, "moves": [str(path.relative_to(run.root)) for path in moved]})
    sync_folder(place.parent)
    finish_setting_aside(run)
    return [str(path.relative_to(run.root)) for path in moved]


def finish_setting_aside(run: RunFolder) -> None:
    """Finish the moves that a kill has interrupted."""
    for file in sorted((run.root / FOLDER).glob(f"*/{MOVES}")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            for name in reversed(told["moves"]):
                _move(inside(run.root, name), inside(file.parent, name))
            # Last: under its new name, the file is only a record.
            file.rename(file.with_name("moved.json"))
            sync_folder(file.parent)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{file}: stages could not be set aside ({error}); nothing is lost") from None


def _move(source: Path, target: Path) -> None:
    # A stage moved before a kill is in its place; nothing is made again before all are there.
    if source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        sync_folder(source.parent)


def dependents(run: RunFolder, config: RunConfig, named: Stage) -> list[Stage]:
    """Return ``named`` and the stages, complete or begun, that were made from it, in the order of making."""
    order = [*STAGES]
    left = [stage for stage in dict.fromkeys((*run.stages(), *run.begun())) if stage.name in order and stage != named]
    gone, found = [named], [named]
    while found:
        # A gate decides which policy later rounds start from.
        gated = min((stage.round for stage in gone if stage.name == "gate"), default=math.inf)
        found = [
            stage
            for stage in left
            if stage.round > gated or not set(inputs_of(run, config, stage.round, stage.name)).isdisjoint(gone)
        ]
        gone, left = [*gone, *found], [stage for stage in left if stage not in found]
    return sorted(gone, key=lambda stage: (stage.round, order.index(stage.name)))


def _paths(run: RunFolder, stages: Sequence[Stage]) -> list[Path]:
    paths = [path for stage in stages for path in (stage.folder, stage.partial)]
    for stage in stages:
        if stage.name == "samples":
            # Questions to people were about these responses.
            paths.append(run.root / "questions" / stage.folder.parent.name)
    return [*paths, *_approvals(run, stages)]


def _approvals(run: RunFolder, stages: Sequence[Stage]) -> list[Path]:
    """People's answers to gates that are in ``stages`` or will decide again: a new question needs a new answer."""
    first = min(stage.round for stage in stages)
    gates = {run.stage(round_, "gate"): file for round_, file in approvals(run).items() if round_ >= first}
    return [file for gate, file in gates.items() if gate in stages or not gate.folder.exists()]


def _refuse_freed(run: RunFolder, config: RunConfig, gone: Sequence[Stage]) -> None:
    """Raise ``UserError`` unless everything that the stages will read exists or is made again too."""
    for stage in gone:
        place = Place(run, config, stage.round)
        for read in reads(run, config, stage.round, stage.name):
            if read not in gone and not _has(read, masters=read in masters_read_by(place, stage.name)):
                raise UserError(
                    f"--from {gone[0].round}:{gone[0].name}: {stage.title} reads {read.title}, whose files were "
                    f"removed to free disk space; --from {read.round}:{read.name} makes them again"
                )


def _has(stage: Stage, *, masters: bool) -> bool:
    """Whether nothing was removed of ``stage`` that is read: all of it, or all but its ``masters``."""
    freed = stage.freed()
    return freed is None or (not masters and all(map(is_master, freed.files)))


def _new_place(run: RunFolder) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parent = run.root / FOLDER
    parent.mkdir(exist_ok=True)
    for number in range(1000):
        place = parent / (f"{stamp}_{number}" if number else stamp)
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise RunError(f"{parent}: more than 1,000 folders of {stamp}")
