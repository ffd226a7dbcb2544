"""policy of rounds 1 and on, for images: one round of preference training by the trainer of all modalities."""

import os
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage
from flows.run_folder.inputs import stores_reference
from flows.stages.context import Context, Outcome
from flows.stages.images.examples import image_round_examples, round_index, scores_of
from flows.stages.training.examples import joined_with_reference
from flows.stages.training.train import WatchNotes, carried_files, fit, keep_offending_rows, starts_at_reference
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RowsError
from pipeline.images.image_adapter import add_image_adapter, merged_network
from pipeline.images.image_folder import Encoders, load_image_policy, save_image_policy
from pipeline.images.image_handshake import image_probe_sequences, probe_conditions, save_image_probe
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import Conditions
from pipeline.losses import Loss
from pipeline.models.weights.adapter_folder import is_adapter
from pipeline.models.weights.lora import save_adapter
from pipeline.storage.integrity import BASE_FILES, BASE_MODEL, model_tree
from pipeline.training.trainee import Trainee
from pipeline.training.watch.course import Watching
from pipeline.types import derive_seed


def train_images(context: Context, round_: int, folder: Path) -> Outcome:
    """Train the round's start policy on this round's pairs; write the new policy's folder."""
    config = context.config
    training, notes = config.training, WatchNotes(folder, config.loss.preset)
    origin = context.policy_path(parent(context.run, config, round_))
    policy = _to_train(context, round_, origin, encoders="text")
    index, told = round_index(context, round_, policy), probe_conditions(policy, image_probe_sequences(policy))
    policy = policy.without_encoders()
    examples = image_round_examples(context, round_, index)
    at_reference = starts_at_reference(context, round_)
    live = needs_of(config.loss).stored_reference and not stores_reference(config)
    if not live:
        examples = joined_with_reference(context, round_, examples)
    try:
        outcome = fit(
            context,
            folder,
            Trainee(
                scores_of(context, policy, index),
                _reference(context, round_, at_reference=at_reference) if live else None,
                live=live,
                starts_at_reference=at_reference and needs_of(config.loss).references > 0,
            ),
            examples,
            Loss(config.loss.preset, config.loss),
            training,
            derive_seed(config.seed, "train", round_),
            files=carried_files(context, round_, folder),
            watching=Watching(training.alarms, [], 0, training.keep, None, notes.alarm, notes.evaluation, notes.resume),
            notes=notes,
        )
    except RowsError as error:
        if context.writes:
            keep_offending_rows(context, round_, folder, error)
        raise
    if not context.writes:
        return outcome
    if outcome.metrics["kept_step"] == 0:
        policy = _to_train(context, round_, origin)
    return Outcome(outcome.rows, {**outcome.metrics, **_saved(context, policy, folder, told)})


def _to_train(context: Context, round_: int, origin: Path, encoders: Encoders = "none") -> ImagePolicy:
    lora = context.config.training.lora
    policy = load_image_policy(origin, trained=True, encoders=encoders)
    if lora is None or is_adapter(origin):
        return policy
    seed = derive_seed(context.config.seed, "adapter", round_)
    return policy.with_network(add_image_adapter(policy.network, lora, seed))


def _reference(context: Context, round_: int, *, at_reference: bool) -> Any | None:
    """The reference's network in memory; None: that of the policy with its adapter off."""
    path = context.model_path(reference_stage(context.run, context.config, round_))
    if at_reference and context.config.training.lora is not None and not is_adapter(path):
        return None
    return load_image_policy(path, encoders="none").network.requires_grad_(False)


def _saved(context: Context, policy: ImagePolicy, folder: Path, told: Conditions) -> dict[str, JsonValue]:
    """Write the trained policy: its adapter alone, or all of it; return facts of the model under an adapter.

    ``told``: the conditions of the probe.
    """
    lora = context.config.training.lora
    if lora is None or lora.lifetime == "round":
        policy = policy.with_network(merged_network(policy.network))
        save_image_policy(policy, folder)
        save_image_probe(policy, folder, told)
        return {}
    base = Path(policy.path).absolute()
    inside = base.is_relative_to(context.run.root.absolute())
    # Relative, a base in the run folder moves with it.
    named = os.path.relpath(base, folder.absolute()) if inside else str(base)
    save_adapter(policy.network, folder, named)
    save_image_probe(policy, folder, told)
    return {BASE_MODEL: named, BASE_FILES: model_tree(base)}
