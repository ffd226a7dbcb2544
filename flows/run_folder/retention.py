"""Removes weights that no stage will read again to free disk space, as ``retention`` says, and records it.

A freed stage keeps its folder and manifest. ``freed.json`` next to it lists the removed files, the time and the reason;
it is written first, so that a kill in between leaves nothing that looks damaged.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.run_folder.ancestry import reference_stages
from flows.run_folder.approvals import DECISION
from flows.run_folder.inputs import Place, masters_read_by
from flows.run_folder.links import inside
from flows.run_folder.stage_table import made_in, names_in, reads, spec_of
from pipeline.config import RunConfig
from pipeline.storage.atomic import sync_folder, write_json
from pipeline.storage.integrity import is_master
from pipeline.storage.manifest import FREED, Freed, plain
from pipeline.storage.run_folder import RunFolder, Stage

logger = logging.getLogger("prefect.prefloop")

# Stages that hold models.
MODELS = ("policy", "average", "discriminator")
_WEIGHTS = ".safetensors"
# Metrics that choose the best round if no gate has named it: the first of these that is measured.
BEST_BY = ("win_rate_vs_start", "reward", "held_out_accuracy")


@dataclass(frozen=True, slots=True)
class FreedStage:
    """A stage with the bytes removed from it."""

    title: str
    bytes: int


def free_room(run: RunFolder, config: RunConfig) -> list[FreedStage]:
    """Remove what ``retention`` does not keep and no later stage reads; first finish what a kill has interrupted.

    The caller holds the run.
    """
    models = [stage for stage in run.stages() if stage.name in MODELS]
    for stage in models:
        freed = stage.freed()
        if freed is not None:
            _remove(stage, freed)
    wide = [stage for stage in models if _masters(stage)]
    if config.retention.last is None and len(wide) < 2:
        return []
    try:
        best = best_round(run)
    except (OSError, ValueError) as error:
        # The weights removed now could be the best round's.
        logger.warning("retention: nothing is freed, because the best round cannot be read: %s", error)
        return []
    # A gate may send the run back to its best round.
    returned = {max((stage.round for stage in wide), default=None), None if config.gate is None else best}
    read = {*_masters_needed(run, config)}
    spared = [stage for stage in wide if stage.round not in returned and stage not in read]
    rounded = [found for stage in spared if (found := _free_masters(stage))]
    return rounded if config.retention.last is None else [*rounded, *_free_models(run, config, models, best)]


def _free_models(run: RunFolder, config: RunConfig, models: Sequence[Stage], best: int | None) -> list[FreedStage]:
    assert config.retention.last is not None, "the caller has looked"
    kept = set(_kept_rounds(run, config, config.retention.last, best))
    needed = {*_needed(run, config), *_needed_after_roll_back(run, config, best)}
    gone = [stage for stage in models if stage.round not in kept and stage not in needed and not _all_freed(stage)]
    return [found for stage in gone if (found := _free(stage, _reason(config)))]


def told(freed: Sequence[FreedStage]) -> str:
    """A line about what was removed."""
    names = ", ".join(stage.title for stage in freed)
    return f"retention: {sum(stage.bytes for stage in freed) / 2**20:,.1f} MiB freed: weights of {names}"


def best_round(run: RunFolder) -> int | None:
    """The round named by the newest gate, or else the one with the best evaluation; None before any evaluation.

    Raises ``OSError`` or ``ValueError`` if a file with the answer cannot be read.
    """
    metrics: dict[int, dict[str, object]] = {}
    for round_ in run.rounds():
        decision = _json(run.stage(round_, "gate").folder / DECISION)
        found = _json(run.stage(round_, "evaluation").folder / "metrics.json")
        if found:
            metrics[round_] = found | {"best_round": decision.get("best_round")}
    named = [best for facts in metrics.values() if isinstance(best := facts["best_round"], int)]
    if named:
        return named[-1]
    for measure in BEST_BY:
        values = {round_: value for round_, facts in metrics.items() if isinstance(value := facts.get(measure), float)}
        if values:
            return max(values, key=lambda round_: (values[round_], round_))
    return None


def _kept_rounds(run: RunFolder, config: RunConfig, last: int, best: int | None) -> Iterator[int]:
    complete = [round_ for round_ in run.rounds() if run.stage(round_, "policy").folder.exists()]
    yield from complete[-last:]
    if config.retention.start:
        yield 0
    # A gate may send the run back to its best round.
    if best is not None and (config.retention.best or run.stage(complete[-1], "gate").folder.exists()):
        yield best


def _needed(run: RunFolder, config: RunConfig) -> Iterator[Stage]:
    """Stages whose weights others may load that are still to be made, or would be in one more round."""
    if config.training.lora is not None and config.training.lora.lifetime == "run":
        # All adapters of the run are adapters of it.
        yield run.stage(0, "policy")
    for round_ in range(config.rounds + 2):
        # Every evaluation reads the start: without it, the run cannot be extended.
        spared = {0} if round_ > config.rounds and not config.retention.start else set()
        for name in (*names_in(config, round_), *(("average",) if round_ > 0 else ())):
            unmade = made_in(config, round_, name) and not run.stage(round_, name).folder.exists()
            if unmade and spec_of(name).weights:
                yield from (stage for stage in reads(run, config, round_, name) if stage.round not in spared)


def _masters_needed(run: RunFolder, config: RunConfig) -> Iterator[Stage]:
    """Stages whose float32 weights others read that are still to be made, or would be in one more round."""
    for round_ in range(1, config.rounds + 2):
        for name in ("policy", "average"):
            if made_in(config, round_, name) and not run.stage(round_, name).folder.exists():
                yield from masters_read_by(Place(run, config, round_), name)


def _needed_after_roll_back(run: RunFolder, config: RunConfig, best: int | None) -> Iterator[Stage]:
    """Stages besides its start that the next round would read if it were sent back to the ``best`` round."""
    if config.gate is not None and best is not None:
        following = max(number for number in run.rounds() if run.stage(number, "policy").folder.exists()) + 1
        yield from reference_stages(run, config, following, best)


def _weights(stage: Stage) -> dict[str, int]:
    """Bytes of the stage's files of weights, those that are gone too."""
    manifest = stage.require()
    return {name: int(str(facts["bytes"])) for name, facts in manifest.files.items() if name.endswith(_WEIGHTS)}


def _all_freed(stage: Stage) -> bool:
    freed = stage.freed()
    return freed is not None and not {*_weights(stage)} - {*freed.files}


def _masters(stage: Stage) -> dict[str, int]:
    """Bytes of the float32 weights that the stage's were rounded from, if they are there."""
    freed = stage.freed()
    gone = () if freed is None else freed.files
    return {name: size for name, size in _weights(stage).items() if is_master(name) and name not in gone}


def _free_masters(stage: Stage) -> FreedStage | None:
    return _take_away(stage, _masters(stage), "float32 weights are kept where a later round goes on from them")


def _free(stage: Stage, reason: str) -> FreedStage | None:
    return _take_away(stage, _weights(stage), reason)


def _take_away(stage: Stage, files: Mapping[str, int], reason: str) -> FreedStage | None:
    before = stage.freed()
    earlier = {} if before is None else before.files
    size = sum(size for name, size in files.items() if name not in earlier)
    if not size:
        return None
    freed = Freed({**earlier, **files}, reason, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    write_json(stage.folder / FREED, plain(freed))
    sync_folder(stage.folder)
    _remove(stage, freed)
    return FreedStage(stage.title, size)


def _remove(stage: Stage, freed: Freed) -> None:
    for name in freed.files:
        inside(stage.folder, name).unlink(missing_ok=True)


def _reason(config: RunConfig) -> str:
    kept = [f"the last {config.retention.last}"]
    kept += ["the best"] if config.retention.best else []
    kept += ["the start"] if config.retention.start else []
    return f"retention: {', '.join(kept)}"


def _json(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}
