"""Run one stage: key, body, commit. The dispatch from a stage's name to its code."""

import os
from contextlib import suppress
from pathlib import Path

from flows.planning.machine import require_room
from flows.run_folder.inputs import check_inputs
from flows.run_folder.stage_keys import stage_key
from flows.run_folder.storage_errors import WRITING, storage_error
from flows.stages.context import Context, Outcome
from flows.workers.local import Workers
from flows.workers.peak_memory import PeakMemory
from pipeline.errors import RunError

# Stages that the sampler child serves; all others run where torch is.
SAMPLED = ("samples", "evaluation_samples", "calibration")


def run_stage(context: Context, round_: int, name: str, workers: Workers | None = None) -> bool:
    """Run stage ``name`` and commit it; False if it was there already. Raises what the stage raises."""
    stage = context.run.stage(round_, name)
    key = stage_key(context.run, context.config, round_, name)
    if stage.complete(key):
        return False
    check_inputs(context.run, context.config, round_, name)
    needed = require_room(context.run, context.config, round_, name)
    memory = PeakMemory(workers.sampler_pids if workers is not None and name in SAMPLED else _own)
    try:
        writer = stage.begin(key)
        try:
            outcome = _body(context, round_, name, writer.folder, workers)
        finally:
            # What failed is said; a full disk must not say it twice.
            with suppress(OSError):
                writer.note_time()
        writer.commit(outcome.rows, {**outcome.metrics, "peak_memory": {**memory.bytes()}})
    except RunError as error:
        raise RunError(f"round {round_}, {name}: {error}") from error
    except WRITING as error:
        told = storage_error(error, context.run.root, stage.title, needed)
        if told is None:
            raise
        raise told from error
    return True


def _own() -> list[int]:
    return [os.getpid()]


def follow_stage(context: Context, round_: int, name: str) -> None:
    """Do ``run_stage``'s part of training in a process that writes nothing."""
    _body(context, round_, name, context.run.stage(round_, name).partial, None)


def _body(context: Context, round_: int, name: str, folder: Path, workers: Workers | None) -> Outcome:
    if name in SAMPLED:
        from flows.stages import samples

        assert workers is not None, "sampling needs the sampler child"
        match name:
            case "samples":
                return samples.samples(context, round_, folder, workers)
            case "calibration":
                return samples.calibration(context, round_, folder, workers)
            case _:
                return samples.evaluation_samples(context, round_, folder, workers)
    match name:
        case "data":
            from flows.stages.data import data

            return data(context, folder)
        case "added_prompts":
            from flows.stages.data import added_prompts

            return added_prompts(context, round_, folder)
        case "gold":
            from flows.stages.labels.gold import gold

            return gold(context, round_, folder)
        case "discriminator":
            from flows.stages.labels.discriminator import discriminator

            return discriminator(context, round_, folder)
        case "labels":
            from flows.stages.labels.labels import labels

            return labels(context, round_, folder)
        case "pairs":
            from flows.stages.pairs import pairs

            return pairs(context, round_, folder)
        case "reference":
            from flows.stages.training.reference import reference

            return reference(context, round_, folder)
        case "policy" if round_ == 0:
            from flows.stages.training.start import start

            return start(context, folder)
        case "policy":
            from flows.stages.training.train import train_round

            return train_round(context, round_, folder)
        case "average":
            from flows.stages.training.train import average

            return average(context, round_, folder)
        case "evaluation":
            from flows.stages.evaluation import evaluation

            return evaluation(context, round_, folder)
        case "gate":
            from flows.stages.gate import gate

            return gate(context, round_, folder)
    raise ValueError(f"no stage is called {name!r}")
