"""A round's policy, from what the round before left to what the next one finds: whole models, and adapters."""

import os
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage
from flows.stages.context import Context
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat
from pipeline.models.policy import load_policy, save_policy, save_probe
from pipeline.models.weights.adapter_folder import (
    ADAPTER_WEIGHTS,
    base_of,
    is_adapter,
    require_shape_asked,
    shapes_in,
)
from pipeline.models.weights.lora import TRAINED_ADAPTER, add_adapter, add_reference, save_adapter
from pipeline.models.weights.weight_format import WeightDtype, WeightFormat
from pipeline.storage.integrity import BASE_FILES, BASE_MODEL, MASTERS, is_master, model_files
from pipeline.storage.run_folder import Stage
from pipeline.storage.shards import shards_of
from pipeline.types import derive_seed


def policy_to_train(context: Context, round_: int) -> Any:
    """The model that the round trains, as the policy that it starts from.

    - Full training: all weights, in ``training.weights``; float32 ones go on from the masters of the round before.
    - ``lora.lifetime: run``: the adapter that the run began with, or that of the round before, on frozen weights.
    - ``lora.lifetime: round``: a new adapter, on the weights that the earlier ones were merged into.
    """
    config = context.config
    lora, trusted, origin = config.training.lora, config.trusts_policy, _origin(context, round_)
    if lora is None:
        held = WeightFormat(config.training.weights)
        return load_policy(str(_masters(context, round_)), trust_remote_code=trusted, held=held)
    if is_adapter(origin):
        require_shape_asked(origin, lora)
        return load_policy(str(origin), trust_remote_code=trusted, held=context.held, trained=True)
    model = load_policy(str(origin), trust_remote_code=trusted, held=context.held)
    return add_adapter(model, lora, derive_seed(config.seed, "adapter", round_))


def require_carried_state(context: Context, round_: int, state: Path | None) -> None:
    """Raise ``UserError`` if the optimiser's ``state`` is not that of the adapter which the round goes on training."""
    origin = _origin(context, round_)
    if state is None or not is_adapter(origin):
        return
    kept = {name: shape for file in shards_of(state) for name, shape in shapes_in(file).items()}
    for name, shape in shapes_in(origin / ADAPTER_WEIGHTS).items():
        # peft's names in memory hold the adapter's own.
        stem, _, part = name.rpartition(".")
        places = [f"{stem}.{TRAINED_ADAPTER}.{part}", f"{name}.{TRAINED_ADAPTER}.weight", name]
        found = {kept[key] for place in places for key in kept if key.startswith(f"{place}.") and len(kept[key]) == 2}
        if found and found != {shape}:
            other = " x ".join(map(str, next(iter(found - {shape}))))
            raise UserError(
                f"training.optimiser_state: carried, but {state} is the state of another adapter: {name} is {other} "
                f"there and {' x '.join(map(str, shape))} in {origin}; allowed: fresh, or the same rank and targets"
            )
        if not found and len(shape) == 2:
            raise UserError(
                f"training.optimiser_state: carried, but {state} is the state of another adapter: it has no {name}, "
                f"which {origin} trains; allowed: fresh, or the same rank and targets"
            )


def _origin(context: Context, round_: int) -> Path:
    return context.policy_path(parent(context.run, context.config, round_))


def _masters(context: Context, round_: int) -> Path:
    """The folder with the widest weights of the policy that the round starts from."""
    stage = context.run.stage(parent(context.run, context.config, round_), "policy")
    origin = context.model_path(stage)
    if context.config.training.weights != "float32":
        return origin
    require_masters(stage)
    return origin / MASTERS if (origin / MASTERS).is_dir() else origin


def require_masters(stage: Stage) -> None:
    """Raise ``RunError`` if the float32 weights beside a stage's own were removed."""
    freed = stage.freed()
    if freed is not None and any(map(is_master, freed.files)):
        raise RunError(
            f"{stage.folder / MASTERS}: the float32 weights of round {stage.round} were removed to free disk space "
            f"when a later round was made; prefloop run ... --from {stage.round}:{stage.name} makes them again"
        )


def reference_model(context: Context, round_: int, model: Any, *, at_reference: bool) -> Any | None:
    """The reference, if the loss needs more of it than is stored; None also if it is ``model`` without its adapter.

    An earlier adapter on the same weights is added to ``model``: no second copy of them is in memory.
    """
    config, lora = context.config, context.config.training.lora
    moves = lora is None and config.training.reference_sync is not None
    if not needs_of(config.loss).live_reference and not moves:
        return None
    path = context.model_path(reference_stage(context.run, config, round_))
    if moves:
        # A reference of 16 bits would not take up small moves.
        return load_policy(str(path), trust_remote_code=config.trusts_policy)
    if lora is not None and at_reference and not is_adapter(path):
        return None
    if lora is not None and lora.lifetime == "run":
        if is_adapter(path):
            add_reference(model, path)
        return None
    return load_policy(str(path), trust_remote_code=config.trusts_policy, held=context.held)


def save_round(context: Context, round_: int, model: Any, folder: Path, chat: Chat) -> dict[str, JsonValue]:
    """Write the trained ``model``: its adapter alone, or all of it in the precision of frozen weights; return facts."""
    lora, origin = context.config.training.lora, _origin(context, round_)
    if lora is None or lora.lifetime == "round":
        # A range that training does not have is not asked of what is stored.
        narrow = lora is None and context.config.training.weights == "bfloat16"
        dtype: WeightDtype = "bfloat16" if narrow else context.held.dtype
        masters = lora is None
        save_policy(model, folder, tokenizer_source=str(origin), chat=chat, dtype=dtype, masters=masters)
        return {"stored_as": dtype}
    base = Path(base_of(origin)).absolute()
    inside = base.is_relative_to(context.run.root.absolute())
    # Relative, a base in the run folder moves with it.
    named = os.path.relpath(base, folder.absolute()) if inside else str(base)
    save_adapter(model, folder, named)
    save_probe(model, chat, folder)
    return {BASE_MODEL: named, BASE_FILES: model_files(base), "held_as": context.held.title}
