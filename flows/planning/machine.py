"""Checks that the disk has room for a stage's files: the plan's arithmetic on what is there. Torch-free."""

import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import assert_never

import psutil

from flows.planning.arithmetic import ParameterCounts, Round, made_examples
from flows.planning.disk import FLOAT32_FILES, TEXT_BYTES, DiskUse, disk_use, image_stage_bytes, stored_weights
from flows.preflight.policy_weights import merged_for_sampling
from flows.run_folder.stage_table import spec_of
from pipeline.config import PretrainedPolicy, RunConfig, TransformersSampler
from pipeline.config.data.mixture import sources_in
from pipeline.config.loss.needs import needs_of
from pipeline.data.sources import files_of
from pipeline.errors import RunError
from pipeline.models.loading.weight_files import parameters_of
from pipeline.models.weights.adapter_folder import base_of
from pipeline.storage.integrity import POINTER
from pipeline.storage.rows import read_rows
from pipeline.storage.run_folder import RunFolder, Stage

# How many prompts are measured, and how much compressed texts may grow in a table.
LOOKED_AT, UNPACKED = 256, 5
# Share of a policy's parameters that an adapter of usual rank adds.
ADAPTER_SHARE = 0.02
COMPRESSED = {".gz", ".parquet"}


def require_room(run: RunFolder, config: RunConfig, round_: int, name: str) -> int:
    """Return about how many bytes a stage will write. Raises ``RunError`` if the disk has no room for them."""
    needed, free = stage_bytes(run, config, round_, name), free_bytes(run.root)
    if config.check_disk and needed > free:
        raise RunError(
            f"{run.stage(round_, name).folder}: needs about {needed:,} bytes, and its disk has {free:,} free; "
            "nothing was started. Make room and give the same command again (check_disk=false starts it all the same)"
        )
    return needed


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(place).free


def stage_bytes(run: RunFolder, config: RunConfig, round_: int, name: str) -> int:
    """Estimate the most that the stage will write beyond what an earlier attempt has left, and beside it meanwhile."""
    there = _size(run.stage(round_, name).partial)
    return max(0, _stage_bytes(run, config, round_, name) - there) + _merged_bytes(run, config, round_, name)


def _merged_bytes(run: RunFolder, config: RunConfig, round_: int, name: str) -> int:
    """Bytes of the whole model that an adapter is merged into for sampling: there until the engine has read it."""
    if not spec_of(name).sampled or not merged_for_sampling(config):
        return 0
    model = _model(run, round_)
    return 0 if model is None else sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _stage_bytes(run: RunFolder, config: RunConfig, round_: int, name: str) -> int:
    if config.modality == "image":
        return image_stage_bytes(run, config, round_, name)
    bound = spec_of(name).bound
    if bound == "sources":
        return _data_bytes(config)
    if bound == "samples":
        sampled = run.stage(round_, "samples").folder
        # While samples are being made, they may become as large as is planned.
        return _size(sampled) if sampled.exists() else _stage_bytes(run, config, round_, "samples")
    if run.stage(0, "data").manifest() is None:
        return 0
    if bound == "training" and round_ == 0:
        # A start policy made from scratch is small, and one that is not trained is not copied.
        if not isinstance(config.policy, PretrainedPolicy) or config.warm_start is None:
            return 0
        return _policy_bytes(_use(run, config, 0, Path(config.policy.path)))
    model = _model(run, round_)
    if model is None:
        return 0
    use = _use(run, config, round_, model, adapter=bound == "training")
    match bound:
        case "training":
            # Training keeps the examples next to the checkpoints.
            return _policy_bytes(use) + use.round.get("pairs", 0)
        case "evaluation":
            return use.round.get("evaluation", 0) // 2
        case "pairs":
            return use.round.get("pairs", 0)
        case "members":
            members = 1 if config.discriminator is None else config.discriminator.members
            return use.round["policy"] * (members + 2)
        case "plan":
            return use.round.get(name, 0) * (_drawn_for_each(config) if name == "samples" else 1)
    assert_never(bound)


def _drawn_for_each(config: RunConfig) -> int:
    """Responses on disk for each one that the samples keep: with a mixture that is resampled, its proposals too."""
    mixture = config.sampling.mixture
    return 1 if mixture is None or isinstance(config.sampler, TransformersSampler) else 1 + mixture.proposals


def _policy_bytes(use: DiskUse) -> int:
    return use.round["policy"] + use.round.get("optimiser", 0) + use.masters + sum(use.passing.values())


def _use(run: RunFolder, config: RunConfig, round_: int, model: Path, *, adapter: bool = False) -> DiskUse:
    """``adapter``: count a policy as what a round of an adapter that lives for the run writes."""
    total = parameters_of(model)
    lora = config.training.lora
    trained = total if lora is None or round_ == 0 else round(total * ADAPTER_SHARE)
    alone = lora is not None and lora.lifetime == "run" and round_ > 0 and adapter
    # Merging writes the adapter's weights into the policy's; the plan counts the two separately.
    merged = total + trained if trained != total else total
    stored = FLOAT32_FILES
    if isinstance(config.policy, PretrainedPolicy):
        stored = replace(stored_weights(config, config.policy.path), alone=alone)
    settings = config.warm_start if round_ == 0 and config.warm_start is not None else config.training
    return disk_use(
        _counts(run, config, round_),
        ParameterCounts(merged, trained),
        made_start=config.warm_start is not None,
        carried=config.training.optimiser_state == "carried",
        averaged=config.training.reference == "ema",
        checkpoints=settings.checkpoint_every > 0,
        best=round_ > 0 and config.training.keeps_evaluated,
        iterative=config.mode == "iterative",
        stored=stored,
        advantages=needs_of(config.loss).advantages,
    )


def _counts(run: RunFolder, config: RunConfig, round_: int) -> Round:
    data = run.stage(0, "data")
    told = {name: count for name, count in data.require().metrics.items() if isinstance(count, int)}
    prompt = _prompt_tokens(data)
    response = _response_tokens(run, config, round_)
    prompts = min(config.prompts_per_round or told["prompts"], told["prompts"])
    given = (told["pairs"] + told["groups"] + told["unpaired"]) // config.rounds
    made = given if config.mode == "offline" else made_examples(config, prompts)
    return Round(
        prompts=prompts,
        responses=config.sampling.n,
        prompt_tokens=prompt,
        response_tokens=response,
        examples=_rows(run.stage(round_, "pairs")) or made,
        continuations=2,
        example_prompt_tokens=prompt,
        example_response_tokens=response,
        held_out=told["held_out"],
        held_out_responses=1 + config.evaluation.samples,
        references=needs_of(config.loss).references or int(needs_of(config.loss).stored_reference),
        epochs=config.training.epochs,
    )


def _rows(stage: Stage) -> int:
    manifest = stage.manifest()
    return 0 if manifest is None else manifest.rows


def _prompt_tokens(data: Stage) -> float:
    """Mean length of prompts in tokens, estimated as for plain text."""
    rows = [*islice(read_rows(data.folder / "prompts"), LOOKED_AT)]
    sizes = [sum(len(message["content"].encode()) for message in row["messages"]) for row in rows]
    # A token is about four bytes of text; a table stores TEXT_BYTES of it.
    return sum(sizes) / max(len(sizes), 1) / (4 * TEXT_BYTES)


def _response_tokens(run: RunFolder, config: RunConfig, round_: int) -> float:
    """Mean length of the latest sampled responses, with room to grow; before any are sampled, the most allowed."""
    limit = config.sampling.max_tokens
    for number in range(round_, -1, -1):
        for name in ("samples", "evaluation_samples"):
            manifest = run.stage(number, name).manifest()
            if manifest is not None:
                drawn = manifest.metrics.get("sampled", manifest.metrics)
                if isinstance(drawn, dict) and (responses := drawn.get("responses")):
                    return min(limit, 1.5 * float(str(drawn["tokens"])) / float(str(responses)))
    return limit


def _model(run: RunFolder, round_: int) -> Path | None:
    """The newest policy when the round begins: pairs of a data set are made before any policy is trained."""
    earlier = [run.stage(number, "policy") for number in range(max(round_ - 1, 0), -1, -1)]
    for stage in earlier:
        manifest = stage.manifest()
        if manifest is not None:
            return Path(base_of(str(manifest.metrics.get(POINTER) or stage.folder)))
    return None


def _data_bytes(config: RunConfig) -> int:
    sources = [source for data in (config.prompts, config.pairs) for _, source in sources_in(data, "")]
    files = {file for source in sources for file in files_of(source)}
    return sum(file.stat().st_size * (UNPACKED if file.suffix in COMPRESSED else 1) for file in files)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# Version 2 control groups hold a container's limit, which the machine's own figures do not show.
GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes: of memory, of the accelerator's memory (None: no accelerator), of the run folder's disk."""

    memory: int
    device: int | None
    disk: int


def room(folder: Path) -> Room:
    """Free space on this machine; ``folder`` need not exist yet."""
    import torch

    device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return Room(free_memory(), device, free_bytes(folder))


def free_memory(group: Path = GROUP) -> int:
    """Bytes that processes can take without swapping, within the limit of the control group ``group``, if any."""
    free: int = psutil.virtual_memory().available
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))
