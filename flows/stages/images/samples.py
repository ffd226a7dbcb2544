"""samples, evaluation_samples of images: prompts -> groups of images, through the engine's child process.

Works shard by shard, as for text. A shard is two files: the images, in the folder ``images``, and the groups that name
them, written last.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import sampled_round
from flows.stages.context import Context, Outcome
from flows.stages.data import held_out_prompts
from flows.stages.sampling.samples import round_prompts
from flows.workers.local import Workers
from flows.workers.messages import NextShard
from flows.workers.pool.sampler_pool import load_facts
from pipeline.config import SamplingSettings
from pipeline.data.pictures.image_rows import IMAGES, image_response, write_images
from pipeline.errors import RunError
from pipeline.images.prompt_ids import condition_told, ids_of_prompt, told_in
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import DrawnImage, Group, Prompt, Response, derive_seed
from pipeline.types.counts import number_of

_Answer = tuple[Response, ...]
_Shard = Sequence[tuple[Prompt, tuple[int, ...]]]


def image_samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """K images of the policy that the round samples for each of this round's prompts."""
    policy = context.run.stage(sampled_round(context.run, context.config, round_), "policy")
    return _sampled(context, round_, folder, workers, round_prompts(context, round_), "samples", policy)


def image_evaluation_samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """Images of this round's policy for each held-out prompt, from the same seeds in every round."""
    (folder / "sampled").mkdir(exist_ok=True)
    policy, prompts = context.run.stage(round_, "policy"), held_out_prompts(context)
    outcome = _sampled(context, round_, folder / "sampled", workers, prompts, "evaluation", policy)
    return Outcome(outcome.rows, {"sampled": outcome.metrics})


def _sampled(
    context: Context,
    round_: int,
    folder: Path,
    workers: Workers,
    prompts: Sequence[Prompt],
    purpose: str,
    source: Stage,
) -> Outcome:
    """Images of the policy in (or pointed to by) the stage ``source``."""
    config, policy = context.config, context.model_path(source)
    evaluated = purpose == "evaluation"
    settings = SamplingSettings(n=config.evaluation.samples if evaluated else config.sampling.n)
    kind = told_in(policy)
    told = [(prompt, ids_of_prompt(condition_told(prompt, kind), kind)) for prompt in prompts]
    size = config.shard_size
    shards = {
        folder / f"shard_{index:05d}.parquet": told[start : start + size]
        for index, start in enumerate(range(0, len(told), size))
    }
    (folder / IMAGES).mkdir(exist_ok=True)
    seals = Seals(folder)
    missing = {file: shard for file, shard in shards.items() if not _held(seals, file)}
    # Held-out prompts have the same seeds in all rounds: grids of rounds show the same noise.
    seed = (config.seed, purpose) if evaluated else (config.seed, purpose, round_)
    requests = [
        SampleRequest(ids, derive_seed(*seed, prompt.id)) for shard in missing.values() for prompt, ids in shard
    ]
    if requests:
        answers = workers.sample(policy, source.folder, requests, settings)
        _write(context, missing, seals, answers, len(told) - len(requests), len(told))
    swap = workers.swaps.get(str(policy))
    shake: JsonValue = load_facts(swap)
    return Outcome(len(told), {"responses": len(told) * settings.n, "weight_handshake": shake})


def _held(seals: Seals, file: Path) -> bool:
    return seals.hold(f"{IMAGES}/{file.name}") and seals.hold(file.name)


def _write(
    context: Context, shards: Mapping[Path, _Shard], seals: Seals, answers: Iterator[_Answer], done: int, total: int
) -> None:
    """Write each shard to its files as soon as its prompts are answered."""
    for file, shard in shards.items():
        groups: list[Group] = []
        drawn: list[tuple[str, DrawnImage]] = []
        for (prompt, ids), answer in zip(shard, islice(answers, len(shard)), strict=True):
            images = [response.image for response in answer if response.image is not None]
            drawn += [(prompt.id, image) for image in images]
            groups.append(Group(prompt, ids, tuple(image_response(image.id) for image in images)))
            done += 1
            context.report(done, total, number_of(len(drawn), "image"))
        place = file.parent / IMAGES / file.name
        write_images(place, drawn, seals.of(f"{IMAGES}/{file.name}"))
        write_groups(file, groups, seals.of(file.name))
        context.on_shard(NextShard(file.name, seals.sha256(file.name), total))
    if next(answers, None) is not None:
        raise RunError("the sampler answered more prompts than it was given")
