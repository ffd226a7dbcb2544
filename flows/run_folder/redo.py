"""Setting stages aside, so that they are made again: the stage named and all that depends on it. Nothing is deleted.

What is to be moved is written down first; the moves go from the last stage to the first. A kill in between leaves the
list, and the next opening of the run moves the rest before anything else.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from flows.run_folder.approvals import approvals
from flows.run_folder.links import inside
from flows.run_folder.stage_table import STAGES, inputs_of, names_in, reads
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError, nearest
from pipeline.storage.atomic import sync_folder, write_json
from pipeline.storage.run_folder import RunFolder, Stage

FOLDER, MOVES = "set_aside", "moves.json"


def parse_stage(option: str, text: str, config: RunConfig) -> tuple[int, str]:
    """``ROUND:STAGE`` as its two parts. Raises ``UserError`` if the run has no such stage."""
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
    """Move the stage, and all that was made from it, to ``set_aside/TIME/`` of the run folder; titles of what moved.

    The caller holds the run. Answers of people and approvals go with the stages that they belong to.

    Raises:
        UserError: nothing of it is there, or what it reads was removed to have its room.
        RunError: a move failed; the next opening of the run goes on with it.
    """
    finish_setting_aside(run)
    named = run.stage(round_, stage)
    gone = dependents(run, config, named)
    moved = [path for path in _paths(run, gone) if path.exists()]
    if not moved:
        raise UserError(f"--from {round_}:{stage}: {named.folder} is not there, nor is anything that was made from it")
    _refuse_freed(run, config, gone)
    place = _new_place(run)
    write_json(place / MOVES, {"from": named.title, "moves": [str(path.relative_to(run.root)) for path in moved]})
    sync_folder(place.parent)
    finish_setting_aside(run)
    return [str(path.relative_to(run.root)) for path in moved]


def finish_setting_aside(run: RunFolder) -> None:
    """Do the moves that a kill has left to do."""
    for file in sorted((run.root / FOLDER).glob(f"*/{MOVES}")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            for name in reversed(told["moves"]):
                _move(inside(run.root, name), inside(file.parent, name))
            # Last: with this name it is only a record.
            file.rename(file.with_name("moved.json"))
            sync_folder(file.parent)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{file}: stages could not be set aside ({error}); nothing is lost") from None


def _move(source: Path, target: Path) -> None:
    # What was moved before a kill is at its place; nothing is made anew before all of it is there.
    if source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        sync_folder(source.parent)


def dependents(run: RunFolder, config: RunConfig, named: Stage) -> list[Stage]:
    """``named`` and the stages, complete or begun, that were made from it, in the order in which they are made."""
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
    """People's answers to gates that are among ``stages``, or that will decide anew: a new question needs a new one."""
    first = min(stage.round for stage in stages)
    gates = {run.stage(round_, "gate"): file for round_, file in approvals(run).items() if round_ >= first}
    return [file for gate, file in gates.items() if gate in stages or not gate.folder.exists()]


def _refuse_freed(run: RunFolder, config: RunConfig, gone: Sequence[Stage]) -> None:
    """What the stages will read must be there, or be made again too."""
    for stage in gone:
        for read in reads(run, config, stage.round, stage.name):
            if read not in gone and read.freed() is not None:
                raise UserError(
                    f"--from {gone[0].round}:{gone[0].name}: {stage.title} reads {read.title}, whose files were "
                    f"removed to have their room; --from {read.round}:{read.name} makes them again"
                )


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
