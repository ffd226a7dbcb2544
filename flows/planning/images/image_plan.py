"""``prefloop plan`` of a run of images: parameters, memory of each stage, disk, and time in passes of the network."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.planning.arithmetic import OFF_DEVICE, STATE_BYTES, StageMemory
from flows.planning.counts import load_data
from flows.planning.disk import DiskUse
from flows.planning.images.image_passes import ImageRound, count_round, probed_passes
from flows.planning.images.traced_network import TracedNetwork, decoder_bytes, trace_network
from flows.planning.machine import room
from flows.planning.memory import ITEM_BYTES, MIB, ON_DEVICE, PARENT_BYTES, reward_model_parts
from flows.planning.plan import RunEstimate
from flows.preflight.data import notes_on_prompts
from flows.preflight.loss_needs import check_needs
from flows.preflight.understand import understood
from flows.workers.local import stays_warm
from pipeline.config import DiffusersSampler, DiffusionPolicy, DotsData, RunConfig, ScratchDiffusion
from pipeline.config.files import load_config
from pipeline.config.loss.needs import needs_of
from pipeline.data.tasks.dots import DOT_CONDITIONS, SIDE
from pipeline.errors import UserError
from pipeline.images.image_folder import load_image_policy
from pipeline.images.prompt_ids import network_settings
from pipeline.images.scratch_network import make_image_policy
from pipeline.models.weights.adapter_folder import base_of
from pipeline.safe_text import name_keys
from pipeline.storage.run_folder import RunFolder

# Of processes that have loaded torch and diffusers and no model yet; measured on Linux with CPU builds.
TRAINER_WITH_DIFFUSERS, SAMPLER_WITH_DIFFUSERS = 680 * MIB, 570 * MIB
# Bytes of a stored image: latents of an autoencoder do not compress, and pixels in the place of latents hold 8 bits; a
# PNG of noise takes most of its pixels, and its header; and those of a row's ids and prompt. Measured on stored rounds.
_LATENT, _PIXEL, _PNG, _PNG_HEADER, _ROW = 4.0, 1.3, 0.8, 67, 170
_LABEL, _PAIR, _SCORED, _WEIGHT = 30, 73, 8, 4
# Of a stage that writes a table: manifest and footers; of a training step in the log.
_STAGE, _STEP = 12 * 1024, 400


@dataclass(frozen=True, kw_only=True)
class ImagePlan(RunEstimate):
    """An estimate of a run of images, whose work is counted in passes of the network; of labelling, in images.

    Attributes:
        round: what one round computes.
        network: its parameters.
        beside: parameters' bytes of autoencoder and text encoders.
    """

    round: ImageRound
    network: TracedNetwork
    beside: int

    def plain(self) -> dict[str, Any]:
        """The plan as JSON data: bytes, passes, seconds."""
        return {
            "name": self.config.name,
            "rounds": self.config.rounds,
            "parameters": {"total": self.network.total, "trained": self.network.trained},
            "round": {**asdict(self.round), "passes": self.work},
            **self.resources(),
        }


def plan_images(
    files: list[Path], settings: list[str], run_dir: Path | None, rates: Mapping[str, float], *, probe: bool
) -> ImagePlan:
    """Plan a config with ``modality: image``; the arguments are those of ``plan_config``.

    Raises ``UserError`` for a mistake in config or data.
    """
    config = load_config(files, settings)
    root = (run_dir or Path("runs") / config.name).resolve()
    config, _ = understood(RunFolder(root).carried(config), root)
    name_keys(config.model_dump(mode="json"))
    tables = load_data(config)
    check_needs(config, tables.contents)
    counted, free = count_round(config, tables), room(root)
    with tempfile.TemporaryDirectory(prefix="prefloop_plan_") as scratch:
        origin = _origin(config, Path(scratch))
        batch, rows = _rows(config, counted)
        traced = trace_network(network_settings(origin), config.training.lora, trained=rows, forward=(batch, rows))
        known, source = dict(rates), "given" if rates else None
        if probe:
            wanted = {"sampling": batch, "scoring": rows, "training": rows}
            wanted = {kind: count for kind, count in wanted.items() if kind not in known}
            known |= probed_passes(load_image_policy(origin, encoders="text"), wanted)
            source = "measured and given" if rates else "measured"
        shape = load_image_policy(origin, encoders="none").shape
        beside = {name: _file_bytes(origin, name) for name in ("vae", "text_encoder*")}
        decoding = decoder_bytes(origin, shape, batch)
        image = _image_bytes(shape, pixels=not (origin / "vae").is_dir())
        stages = _stages(config, counted, traced, beside, decoding, 8 * shape[0] * shape[1] * shape[2])
        where = frozenset[str]() if free.device is None else ON_DEVICE - _away(config)
        stages = tuple(StageMemory(stage.stage, stage.parts, where) for stage in stages)
        disk = _disk(config, counted, traced, sum(beside.values()), image)
    return ImagePlan(
        config=config,
        work=counted.passes(),
        round=counted,
        network=traced,
        beside=sum(beside.values()),
        stages=stages,
        disk=disk,
        rates=known,
        rates_from=source,
        room=free,
        notes=tuple(notes_on_prompts(config, len(tables.prompts))),
    )


def _origin(config: RunConfig, scratch: Path) -> Path:
    """The start policy's folder, under an adapter; a policy that the run would make is made untrained."""
    match config.policy:
        case DiffusionPolicy():
            return Path(base_of(config.policy.path))
        case ScratchDiffusion():
            classes = len(DOT_CONDITIONS) if isinstance(config.prompts, DotsData) else 0
            make_image_policy(config.policy, SIDE, classes, 0, scratch / "policy")
            return scratch / "policy"
    raise UserError(f"policy.kind: {config.policy.kind} draws no images; allowed: diffusion, scratch_diffusion")


def _rows(config: RunConfig, counted: ImageRound) -> tuple[int, int]:
    """Rows of a pass of the sampler, and of one with gradient."""
    assert isinstance(config.sampler, DiffusersSampler), "the config's validator requires it"
    sampled = config.sampler.batch * (1 + counted.guided)
    return sampled, counted.sides * config.training.micro_batch_size * config.training.score.draws


def _away(config: RunConfig) -> frozenset[str]:
    return frozenset({"optimiser"}) if config.training.optimiser in OFF_DEVICE else frozenset()


def _file_bytes(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for place in folder.glob(pattern) for file in place.glob("*.safetensors"))


def _image_bytes(shape: tuple[int, int, int], *, pixels: bool) -> float:
    channels, height, width = shape
    dimensions = channels * height * width
    if pixels:
        return dimensions * (_PIXEL + _PNG) + _PNG_HEADER + _ROW
    # Eight pixels a side of a latent, of three colours.
    return dimensions * _LATENT + 64 * height * width * 3 * _PNG + _PNG_HEADER + _ROW


def _stages(
    config: RunConfig,
    counted: ImageRound,
    traced: TracedNetwork,
    beside: Mapping[str, int],
    decoding: int,
    image: int,
) -> tuple[StageMemory, ...]:
    """Memory of each stage; ``image``: bytes of one that a table in memory holds, while it is stacked."""
    assert isinstance(config.sampler, DiffusersSampler), "the config's validator requires it"
    batch, rows = _rows(config, counted)
    weights, item = traced.total * _WEIGHT, ITEM_BYTES[config.sampler.dtype]
    engine = traced.total * item + sum(beside.values()) * item // _WEIGHT
    engine += max(traced.forward[batch], decoding) * item // _WEIGHT
    alone, parts = {"processes": PARENT_BYTES + TRAINER_WITH_DIFFUSERS}, dict[str, Mapping[str, int]]()
    warm = stays_warm(config)
    resting = {"processes": alone["processes"] + warm * SAMPLER_WITH_DIFFUSERS} | ({"engine": engine} if warm else {})
    stepped = traced.trained * STATE_BYTES[config.training.optimiser]
    steps = {"gradients": traced.trained * _WEIGHT, "optimiser": stepped, "activations": traced.activations}
    if config.warm_start is not None:
        share = config.warm_start.micro_batch_size / rows
        first = {**steps, "activations": round(traced.activations * share)}
        parts["warm start"] = {**alone, "weights": weights, **first}
    held = PARENT_BYTES + SAMPLER_WITH_DIFFUSERS
    parts["sampling"] = {"processes": held + warm * TRAINER_WITH_DIFFUSERS, "engine": engine}
    if config.scorer is not None and (models := reward_model_parts(config.scorer)):
        parts["labelling"] = {**resting, **models}
    images = (counted.sampled or 2 * counted.examples) * image
    scored = {"weights": weights + beside["text_encoder*"], "activations": traced.forward[rows], "images": images}
    parts["reference, evaluation"] = {**resting, **scored}
    live = needs_of(config.loss).stored_reference and config.training.score.reference_errors == "live"
    both = weights * (2 if live and config.training.lora is None else 1)
    parts["training"] = {**resting, "weights": both + beside["text_encoder*"], **steps, "images": images}
    return tuple(StageMemory(name, {n: b for n, b in found.items() if b}) for name, found in parts.items())


def _disk(config: RunConfig, counted: ImageRound, traced: TracedNetwork, beside: int, image: float) -> DiskUse:
    """Bytes of the run folder."""
    lora, training = config.training.lora, config.training
    evaluated = 3 * _STAGE + counted.evaluated * (image + _LABEL)
    full = traced.total * _WEIGHT + beside
    policy = traced.trained * _WEIGHT if lora is not None and lora.lifetime == "run" else full
    scores = counted.examples * counted.sides * counted.draws * _WEIGHT
    rows = counted.sides * training.score.draws * training.batch_size
    offline = config.mode == "offline"
    stored = 2 * counted.examples * image if offline else 0
    # Pictures of perfect dots compress.
    pictures = config.prompts.pictures * _ROW if isinstance(config.prompts, DotsData) else 0
    start = {
        "data": _STAGE + stored + (pictures if config.warm_start is not None else 0),
        "policy": full if config.warm_start is not None else 0,
        "evaluation": evaluated,
    }
    each = {
        "samples": 0 if offline else 2 * _STAGE + counted.sampled * image,
        "labels": 0 if offline else _STAGE + counted.sampled * _LABEL,
        "pairs": _STAGE + counted.examples * counted.sides * _PAIR,
        "reference": counted.references * (_STAGE + scores + counted.examples * _SCORED),
        "policy": _STAGE + policy + _STEP * math.ceil(counted.trained / rows),
        "evaluation": evaluated,
    }
    written = traced.trained * (_WEIGHT + STATE_BYTES[training.optimiser])
    policies = None if config.retention.last is None else config.retention.last + 2
    return DiskUse(
        {name: round(size) for name, size in start.items() if size},
        {name: round(size) for name, size in each.items() if size},
        {"checkpoints": 2 * written} if training.checkpoint_every else {},
        policies,
    )
