"""Runs that cannot fit on this machine's card, refused before anything is loaded. Torch-free.

Only what is sure counts: the weights in the smallest form that the settings allow, their gradients and the optimiser's
state. ``plan`` adds what depends on lengths.
"""

import subprocess
from pathlib import Path

from flows.planning.arithmetic import OFF_DEVICE
from flows.planning.cards.fitting import CONTEXT_BYTES, GB, Card, advice, least_parts, whole_of
from flows.planning.cards.recipes import PartCounts, Recipe, recipe_of
from flows.workers.local import has_accelerator
from pipeline.config import Optimisation, PretrainedPolicy, RayCluster, RunConfig, VllmSampler
from pipeline.errors import UserError
from pipeline.models.loading.weight_files import parameters_of
from pipeline.training.distributed.launch import Launch, read_launch

_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_MIB = 1024**2


def own_card() -> Card | None:
    """The smallest of this machine's accelerators, alone; None if there is none, or its memory is not known."""
    if not has_accelerator():
        return None
    try:
        shown = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
        return Card(min(int(line) for line in shown.splitlines() if line.strip()) * _MIB)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def require_card(config: RunConfig, card: Card | None = None) -> None:
    """Raise ``UserError`` if the policy is sure not to fit on ``card``, by default this machine's, or is not known.

    A cluster's cards are not looked at.
    """
    if isinstance(config.cluster, RayCluster):
        return
    policy, card = config.policy, card or own_card()
    if card is None or not isinstance(policy, PretrainedPolicy) or not Path(policy.path).is_dir():
        return
    total = parameters_of(Path(policy.path))
    launch = read_launch(config)
    if not total or (launch is not None and launch.cpu):
        return
    for section, settings in (("training", config.training), ("warm_start", config.warm_start)):
        if settings is not None:
            _require_training(config, section, settings, launch, card, total)
    _require_engine(config, card, total)


def _require_training(
    config: RunConfig, section: str, settings: Optimisation, launch: Launch | None, card: Card, total: int
) -> None:
    recipe = (
        recipe_of(config, settings, Path(config.policy.path)) if isinstance(config.policy, PretrainedPolicy) else None
    )
    if recipe is None:
        return
    lora = recipe.adapter
    needed = _least(recipe, settings, launch, card, _counts(recipe, total))
    if needed > card.size:
        how = "an adapter on" if lora else "full training of"
        raise UserError(
            f"{section}: {how} the {total / 1e9:.2f} billion parameters of policy.path needs at least "
            f"{needed / GB:.1f} GB on a card, and this machine's has {card.size / GB:.1f} GB; {advice(recipe)} "
            "(prefloop plan CONFIG --cards 24,80 compares)"
        )


def _counts(recipe: Recipe, total: int) -> PartCounts:
    """The parts of a policy whose layers are not known: as if all were quantised, which is sure to be too little."""
    return PartCounts(linear=0 if recipe.bits is None else total, head=0, rest=total if recipe.bits is None else 0)


def _least(recipe: Recipe, settings: Optimisation, launch: Launch | None, card: Card, counts: PartCounts) -> int:
    parts = least_parts(recipe, counts, Card(card.size))
    zero = None if launch is None else launch.zero
    if launch is not None and launch.sharding is not None:
        if launch.sharding.offload:
            return CONTEXT_BYTES
        parts |= {name: parts.get(name, 0) // launch.processes for name in ("weights", "gradients", "optimiser")}
    if zero is not None:
        cut = ("optimiser",) if zero.stage == 1 else ("gradients", "optimiser")
        parts |= {name: parts.get(name, 0) // (launch.processes if launch else 1) for name in cut}
    if settings.optimiser in OFF_DEVICE or (zero is not None and zero.offload != "none"):
        parts.pop("optimiser", None)
    return whole_of(parts)


def _require_engine(config: RunConfig, card: Card, total: int) -> None:
    sampler = config.sampler
    if config.mode == "offline" or not isinstance(sampler, VllmSampler) or sampler.engine_args:
        # Arguments may quantise the weights.
        return
    ranks = sampler.tensor_parallel_size * sampler.pipeline_parallel_size
    each = f" on each of {ranks} cards" if ranks > 1 else ""
    needed, given = 2 * total // ranks, sampler.gpu_memory_utilization * card.size
    if needed > given:
        raise UserError(
            f"sampler.gpu_memory_utilization: {sampler.gpu_memory_utilization:g} of {card.size / GB:.1f} GB is "
            f"{given / GB:.1f} GB, and the {total / 1e9:.2f} billion parameters of policy.path take "
            f"{needed / GB:.1f} GB in 16 bits{each}; raise it (at most 1), or set sampler.engine_args: "
            "{quantization: fp8} or a larger sampler.tensor_parallel_size"
        )
