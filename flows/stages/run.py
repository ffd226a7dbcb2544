"""Run one stage: key, body, commit."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.planning.machine import require_room
from flows.run_folder.key_parts import require_files_as_keyed
from flows.run_folder.stage_keys import stage_key
from flows.run_folder.stage_table import reads, spec_of
from flows.run_folder.storage_errors import WRITING, storage_error
from flows.stages.context import Context, Outcome
from flows.workers.local import Workers
from flows.workers.peak_memory import PeakMemory, free_device_memory
from pipeline.errors import RunError
from pipeline.storage.integrity import require_intact

# New objects after which Python looks for cycles among them. Stages make millions of small ones without cycles; with
# the default, 700, a quarter of their time goes into looking.
COLLECT_AFTER = 50_000


def run_stage(context: Context, round_: int, name: str, workers: Workers | None = None) -> bool:
    """Run stage ``name`` and commit it; return False if it existed already. Raises what the stage raises."""
    stage, source = context.run.stage(round_, name), spec_of(name).by_shard
    by_shard = set() if source is None else {context.run.stage(round_, source).title}
    open_ = by_shard if context.shards is not None else set()
    made = {title: stage_key(context.run, context.config, round_, str(source)).digest for title in open_}
    key = stage_key(context.run, context.config, round_, name, made)
    if stage.complete(key):
        return False
    for read in reads(context.run, context.config, round_, name):
        if read.title not in open_:
            require_intact(read)
    needed = require_room(context.run, context.config, round_, name)
    engines = workers if spec_of(name).sampled else None
    memory = PeakMemory(engines.sampler_pids if engines is not None else lambda: [os.getpid()])
    try:
        writer = stage.begin(key, by_shard)
        try:
            outcome = _body(context, round_, name, writer.folder, workers)
            require_files_as_keyed(context.config, key, outcome.metrics)
        finally:
            # The stage's own error counts; a full disk must not replace it with another.
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
    finally:
        free_device_memory()
    return True


def follow_stage(context: Context, round_: int, name: str) -> None:
    """Do ``run_stage``'s part of training in a process that does not write."""
    _body(context, round_, name, context.run.stage(round_, name).partial, None)


def _body(context: Context, round_: int, name: str, folder: Path, workers: Workers | None) -> Outcome:
    bodies = IMAGE_BODIES if context.config.modality == "image" else BODIES
    return bodies[name](Job(context, round_, folder, workers))


@dataclass(frozen=True)
class Job:
    """Inputs of a stage's body: the folder to write to, and the sampler child for stages that sample."""

    context: Context
    round: int
    folder: Path
    workers: Workers | None

    @property
    def sampler(self) -> Workers:
        """The run's child processes, one of which samples."""
        assert self.workers is not None, "sampling needs the sampler child"
        return self.workers


def _data(job: Job) -> Outcome:
    from flows.stages.data import data

    return data(job.context, job.folder)


def _added_prompts(job: Job) -> Outcome:
    from flows.stages.data import added_prompts

    return added_prompts(job.context, job.round, job.folder)


def _mixed_model(job: Job) -> Outcome:
    from flows.stages.training.given import mixed_model

    return mixed_model(job.context, job.folder)


def _samples(job: Job) -> Outcome:
    from flows.stages.sampling.samples import samples

    return samples(job.context, job.round, job.folder, job.sampler)


def _second_policy(job: Job) -> Outcome:
    from flows.stages.training.given import second_policy

    return second_policy(job.context, job.folder)


def _second_samples(job: Job) -> Outcome:
    from flows.stages.sampling.second import second_samples

    return second_samples(job.context, job.round, job.folder, job.sampler)


def _gold(job: Job) -> Outcome:
    from flows.stages.labels.gold import gold

    return gold(job.context, job.round, job.folder)


def _discriminator(job: Job) -> Outcome:
    from flows.stages.labels.discriminator import discriminator

    return discriminator(job.context, job.round, job.folder)


def _labels(job: Job) -> Outcome:
    from flows.stages.labels.labels import labels

    return labels(job.context, job.round, job.folder)


def _pairs(job: Job) -> Outcome:
    from flows.stages.pairs import make_round_pairs

    return make_round_pairs(job.context, job.round, job.folder)


def _calibration(job: Job) -> Outcome:
    from flows.stages.sampling.samples import calibration

    return calibration(job.context, job.round, job.folder, job.sampler)


def _reference(job: Job) -> Outcome:
    from flows.stages.training.reference import reference

    return reference(job.context, job.round, job.folder)


def _advantages(job: Job) -> Outcome:
    from flows.stages.training.advantages import estimate_advantages

    return estimate_advantages(job.context, job.round, job.folder)


def _policy(job: Job) -> Outcome:
    if job.round == 0:
        from flows.stages.training.start import start_policy

        return start_policy(job.context, job.folder)
    from flows.stages.training.train import train_round

    return train_round(job.context, job.round, job.folder)


def _evaluation_samples(job: Job) -> Outcome:
    from flows.stages.sampling.samples import evaluation_samples

    return evaluation_samples(job.context, job.round, job.folder, job.sampler)


def _suite_samples(job: Job) -> Outcome:
    from flows.stages.measures.suite_samples import suite_samples

    return suite_samples(job.context, job.round, job.folder, job.sampler)


def _suites(job: Job) -> Outcome:
    from flows.stages.measures.suites import suites

    return suites(job.context, job.round, job.folder)


def _evaluation(job: Job) -> Outcome:
    from flows.stages.evaluation import evaluation

    return evaluation(job.context, job.round, job.folder)


def _gate(job: Job) -> Outcome:
    from flows.stages.gate import gate

    return gate(job.context, job.round, job.folder)


def _average(job: Job) -> Outcome:
    from flows.stages.training.train import average

    return average(job.context, job.round, job.folder)


# Each imports its code as it runs: a process that only starts stages loads no torch.
BODIES: Mapping[str, Callable[[Job], Outcome]] = {
    "data": _data,
    "added_prompts": _added_prompts,
    "mixed_model": _mixed_model,
    "samples": _samples,
    "second_policy": _second_policy,
    "second_samples": _second_samples,
    "gold": _gold,
    "discriminator": _discriminator,
    "labels": _labels,
    "pairs": _pairs,
    "calibration": _calibration,
    "reference": _reference,
    "advantages": _advantages,
    "policy": _policy,
    "evaluation_samples": _evaluation_samples,
    "suite_samples": _suite_samples,
    "suites": _suites,
    "evaluation": _evaluation,
    "gate": _gate,
    "average": _average,
}


def _image_data(job: Job) -> Outcome:
    from flows.stages.images.data import image_data

    return image_data(job.context, job.folder)


def _image_samples(job: Job) -> Outcome:
    from flows.stages.images.samples import image_samples

    return image_samples(job.context, job.round, job.folder, job.sampler)


def _image_labels(job: Job) -> Outcome:
    from flows.stages.images.labels import image_labels

    return image_labels(job.context, job.round, job.folder)


def _image_reference(job: Job) -> Outcome:
    from flows.stages.images.reference import image_reference

    return image_reference(job.context, job.round, job.folder)


def _image_policy(job: Job) -> Outcome:
    if job.round == 0:
        from flows.stages.images.start import image_start

        return image_start(job.context, job.folder)
    from flows.stages.images.train import train_images

    return train_images(job.context, job.round, job.folder)


def _image_evaluation_samples(job: Job) -> Outcome:
    from flows.stages.images.samples import image_evaluation_samples

    return image_evaluation_samples(job.context, job.round, job.folder, job.sampler)


def _image_evaluation(job: Job) -> Outcome:
    from flows.stages.images.evaluation import image_evaluation

    return image_evaluation(job.context, job.round, job.folder)


# Of runs of images; the others are the same for both.
IMAGE_BODIES: Mapping[str, Callable[[Job], Outcome]] = {
    **BODIES,
    "data": _image_data,
    "samples": _image_samples,
    "labels": _image_labels,
    "reference": _image_reference,
    "policy": _image_policy,
    "evaluation_samples": _image_evaluation_samples,
    "evaluation": _image_evaluation,
}
