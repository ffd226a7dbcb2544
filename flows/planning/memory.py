"""Memory of each stage of a run, by part."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

import psutil
import torch

from flows.planning.arithmetic import OFF_DEVICE, ParameterCounts, StageMemory, TrainerMemory
from flows.planning.cards.recipes import Recipe, recipe_of
from flows.planning.cards.traced import counted_parts
from flows.planning.counts import PlannedRound
from flows.planning.machine import Room
from flows.planning.measure import scoring_memory, training_memory
from flows.planning.probe import Probed, classifier_parameters
from flows.workers.local import has_accelerator, stays_warm
from flows.workers.pool.label_engine import label_seats
from flows.workers.pool.seating import seating_of
from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    DiffusersSampler,
    ImageClassifierScorer,
    Optimisation,
    PairwiseScorer,
    RunConfig,
    SamplerSettings,
    ScorerSettings,
    ServerSampler,
    TransformersSampler,
    VllmSampler,
    scorers_of,
)
from pipeline.config.loss.needs import needs_of
from pipeline.losses import Loss
from pipeline.models.weights.weight_format import frozen_format, stored_dtype
from pipeline.sampling.sampler import engine_dtype
from pipeline.training.distributed.launch import Launch, read_launch, reduced_once
from pipeline.training.distributed.passes import PASS_TOKENS, sequences_a_pass
from pipeline.types import derive_seed


def held_together(
    memory: TrainerMemory, settings: Optimisation, launch: Launch | None, *, device: bool, card_bytes: int
) -> tuple[dict[str, int], frozenset[str]]:
    """Return (bytes by name, names of the parts that are not on the accelerator).

    Accelerator memory is counted for one accelerator, other memory for the whole machine. FSDP2 adds the layer whose
    weights are gathered.

    Args:
        memory: of one process that trains alone; every process has passes of that size.
        settings: of the training.
        launch: of the run; None: a single process.
        device: whether training is on accelerators.
        card_bytes: memory of one process's device.
    """
    sharded = launch is not None and launch.kind == "FSDP2"
    # Of several passes, each process sums whole gradients where they are reduced once.
    summed = memory.gradients if sharded and reduced_once(settings, memory.gradients, card_bytes) else 0
    sizes = memory.parts | {SUMS: summed}
    away = _away(settings, launch) if device else frozenset({*sizes})
    count, cut = (1, frozenset[str]()) if launch is None else (launch.processes, _cut(launch))

    def held(name: str, size: int) -> int:
        return round(size * (count if name in away else 1) / (count if name in cut else 1))

    parts = {name: held(name, size) for name, size in sizes.items()}
    # FSDP2's main process keeps the whole policy in order to write it.
    parts["whole policy"] = memory.policy if sharded else 0
    return parts, away | {"whole policy"}


def _process_bytes(launch: Launch | None) -> int:
    """Memory of one process's device: of the smallest card, or its share of the machine's."""
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        return min(int(torch.cuda.get_device_properties(card).total_memory) for card in cards)
    return int(psutil.virtual_memory().total) // (1 if launch is None else launch.processes)


def _cut(launch: Launch) -> frozenset[str]:
    """Names of the parts that are sharded across processes; each process holds all of the others."""
    if launch.kind == "FSDP2":
        return frozenset({"weights", "gradients", "optimiser"})
    if launch.zero is not None:
        return frozenset({"optimiser"} if launch.zero.stage == 1 else {"gradients", "optimiser"})
    return frozenset()


def _away(settings: Optimisation, launch: Launch | None) -> frozenset[str]:
    """Names of the parts that need not be on the accelerator."""
    if launch is not None and launch.sharding is not None and launch.sharding.offload:
        return frozenset({"weights", "gradients", "optimiser"})
    offloads = launch is not None and launch.zero is not None and launch.zero.offload == "cpu"
    return frozenset({"optimiser"} if offloads or settings.optimiser in OFF_DEVICE else ())


MIB, GIB = 1024**2, 1024**3
# Memory of processes that have started and have no model yet; what they share is counted with the first. Measured on
# Linux with CPU builds: the command line with its flow and Prefect's server; trainer; sampler with vLLM; without vLLM.
PARENT_BYTES, TRAINER_BYTES, VLLM_BYTES, TRANSFORMERS_BYTES = 800 * MIB, 450 * MIB, 550 * MIB, 450 * MIB
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# Share of the accelerator that an engine's own server takes (vLLM's default).
SERVER_SHARE = 0.9
SUMS = "gradient sums"
ON_DEVICE = frozenset({"weights", "gradients", SUMS, "optimiser", "activations", "engine"})


def stage_memories(
    config: RunConfig, origin: str, shape: Any, planned: PlannedRound, supervised: Loss, free: Room
) -> tuple[tuple[StageMemory, ...], ParameterCounts, float | None]:
    """Return (the run's stages in order, the policy's parameters, training's tokens a second).

    Args:
        config: of the run.
        origin: folder or hub name of the start policy.
        shape: its transformers config.
        planned: one round.
        supervised: the loss of the warm start.
        free: memory available for measurements.
    """
    device = free.device
    space = free.memory if device is None else device
    probed, seed, launch = _probed(config, origin, shape), derive_seed(config.seed, "train", 1), read_launch(config)
    card = _process_bytes(launch)
    measured, rate = training_memory(probed, planned.examples, config.training, seed, space)
    training = replace(measured, held=_held_bytes(config, origin, shape))
    engines = len(seating_of(config).engines) if config.mode == "iterative" else 1
    # Each has cards of its own, but all share the machine's memory.
    engine = _engine(config.sampler, origin, shape, training.parameters, planned, device)
    if isinstance(config.sampler, TransformersSampler) and config.sampling.mixture is not None:
        # It holds the mixture's other model too, counted as one of the same size.
        engine *= 2
    engine *= 1 if device is not None else engines
    warm, sampler = stays_warm(config), _sampler_process(config.sampler) * engines
    # Split engines are on other cards than the trainer.
    beside = warm and not (device is not None and config.placement == "split")
    resting = {"processes": PARENT_BYTES + TRAINER_BYTES} | ({"engine": engine} if beside else {})
    if warm:
        resting["processes"] += sampler
    stages: dict[str, Mapping[str, int]] = {}
    away: dict[str, frozenset[str]] = {}
    alone = PARENT_BYTES + TRAINER_BYTES * (1 if launch is None else launch.processes)
    if planned.warm and config.warm_start is not None:
        first = Probed(shape, supervised, trust_remote_code=config.trusts_policy)
        seed = derive_seed(config.seed, "warm start")
        # The sampler starts with the first evaluation.
        taken = training_memory(first, planned.warm, config.warm_start, seed, space)[0]
        parts, away["warm start"] = held_together(
            taken, config.warm_start, launch, device=device is not None, card_bytes=card
        )
        stages["warm start"] = {"processes": alone, **parts}
    stages["sampling"] = resting if beside else {"processes": PARENT_BYTES + sampler, "engine": engine}
    if config.scorer is not None and (models := reward_model_parts(config.scorer)):
        engines = len(label_seats(config, seating_of(config).rest))
        # Several engines have processes of their own, and a model each, on an accelerator of its own.
        models = models if device is not None else {name: engines * size for name, size in models.items()}
        more = TRAINER_BYTES * (engines if engines > 1 else 0)
        stages["labelling"] = {**resting, **models, "processes": resting["processes"] + more}
    scores = "reference, evaluation" if needs_of(config.loss).stored_reference else "evaluation"
    scored = _scoring(config, probed, planned, _frozen_bytes(config, origin, shape), measured=rate is not None)
    # All training processes score; each has a model of its own, on an accelerator of its own.
    copies = launch.processes if launch is not None and device is None else 1
    resting = {**resting, "processes": resting["processes"] + alone - PARENT_BYTES - TRAINER_BYTES}
    stages[scores] = {**resting, **{name: copies * size for name, size in scored.items()}}
    parts, away["training"] = held_together(
        training, config.training, launch, device=device is not None, card_bytes=card
    )
    stages["training"] = {**resting, **parts}
    where = frozenset() if device is None else ON_DEVICE
    named = (
        StageMemory(name, {n: b for n, b in parts.items() if b}, where - away.get(name, frozenset()))
        for name, parts in stages.items()
    )
    return tuple(named), training.parameters, rate


def _probed(config: RunConfig, origin: str, shape: Any) -> Probed:
    training = config.training
    # With the adapter off, the policy is the round's start; any other reference is loaded as a second model.
    own_base = training.lora is not None and training.reference == "previous"
    loss = Loss(config.loss.preset, config.loss)
    moves = training.reference_sync is not None and training.lora is None
    beside = moves or (needs_of(config.loss).live_reference and not own_base)
    return Probed(shape, loss, training.lora, beside, config.trusts_policy, recipe_of(config, training, origin).held)


def _held_bytes(config: RunConfig, origin: str, shape: Any) -> int:
    """Bytes of the policy while it is trained."""
    counts = counted_parts(shape, config.training.lora, trust_remote_code=config.trusts_policy)
    return recipe_of(config, config.training, origin).weight_bytes(counts)


def _frozen_bytes(config: RunConfig, origin: str, shape: Any) -> int:
    """Bytes of a policy that scores."""
    form, lora = frozen_format(config, origin), config.training.lora
    held = form.quantisation
    bits, double = (None, True) if held is None else (held.bits, held.double)
    recipe = Recipe("", form.dtype, lora is not None, bits, double)
    return recipe.weight_bytes(counted_parts(shape, lora, trust_remote_code=config.trusts_policy))


def _scoring(
    config: RunConfig, probed: Probed, planned: PlannedRound, weight_bytes: int, *, measured: bool
) -> dict[str, int]:
    """Memory of one model at a time, and of its passes over examples or over the evaluation's samples."""
    weights, counts = {"weights": weight_bytes}, planned.counts
    if not measured:
        return weights
    prompt, response = max(1, round(counts.example_prompt_tokens)), max(1, round(counts.example_response_tokens))
    most = sequences_a_pass(config.training.micro_batch_size, "cuda" if torch.cuda.is_available() else "cpu")
    tokens = min(PASS_TOKENS, most * (prompt + response))
    return {**weights, "activations": scoring_memory(probed, (prompt, response), tokens, config.training)}


def _engine(
    settings: SamplerSettings,
    origin: str,
    shape: Any,
    parameters: ParameterCounts,
    planned: PlannedRound,
    device: int | None,
) -> int:
    """Bytes of the sampler's weights and key-value cache."""
    if isinstance(settings, ServerSampler) and settings.base_url is not None:
        return 0
    weights = parameters.total * ITEM_BYTES[engine_dtype(settings.dtype, origin, device is not None)]
    match settings:
        case VllmSampler():
            if device is not None:
                return round(settings.gpu_memory_utilization * device)
            return weights + settings.cpu_kv_cache_gib * GIB
        case ServerSampler():
            return weights + GIB if device is None else round(SERVER_SHARE * device)
        case TransformersSampler():
            text = shape.get_text_config()
            # A model without attention (Mamba) keeps no keys and values.
            asking = getattr(text, "num_attention_heads", 0)
            heads = getattr(text, "num_key_value_heads", None) or asking
            size = getattr(text, "head_dim", None) or text.hidden_size // max(1, asking)
            item = ITEM_BYTES[engine_dtype(settings.dtype, origin, device is not None)]
            longest = max(e.length for e in planned.examples)
            per_token: int = 2 * text.num_hidden_layers * heads * size * item
            return weights + settings.batch_size * longest * per_token
        case DiffusersSampler():
            return weights
    assert_never(settings)


def _sampler_process(settings: SamplerSettings) -> int:
    match settings:
        case VllmSampler():
            return VLLM_BYTES
        case TransformersSampler() | DiffusersSampler():
            return TRANSFORMERS_BYTES
        case ServerSampler():
            # The process that sends requests, and the server that it starts.
            return TRANSFORMERS_BYTES + (VLLM_BYTES if settings.base_url is None else 0)
    assert_never(settings)


def reward_model_parts(settings: ScorerSettings) -> dict[str, int]:
    """Memory of reward models loaded here: all weights, and what a layer without gradient holds for the longest batch.

    Hidden states go in and out, and the feed-forward part holds two or three times its width; 16 times the hidden
    size covers both.
    """
    weights, activations = 0, 0
    for _, scorer in scorers_of(settings):
        match scorer:
            case ImageClassifierScorer() | ClipScorer():
                weights += sum(file.stat().st_size for file in Path(scorer.path).glob("*.safetensors"))
                continue
            case ClassifierScorer():
                longest = max(scorer.pass_tokens(has_accelerator()), scorer.max_tokens)
            case PairwiseScorer():
                longest = scorer.batch_size * (scorer.max_prompt_tokens + 2 * scorer.max_response_tokens)
            case _:
                continue
        parameters, hidden = classifier_parameters(scorer.path, trust_remote_code=scorer.trust_remote_code)
        item = ITEM_BYTES[stored_dtype(scorer.path) if scorer.dtype == "auto" else scorer.dtype]
        weights += parameters * item
        activations = max(activations, 16 * hidden * longest * item)
    return {"weights": weights, "activations": activations} if weights else {}
