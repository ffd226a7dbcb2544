"""Mid-round checkpoints: trained tensors, optimiser state and progress, as safetensors and JSON.

A checkpoint is written next to its place and renamed, so one that exists is whole; only then is the
previous one removed. No random state is kept: the trainer derives each step's from seed and step.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from pipeline.errors import RunError, UserError
from pipeline.models.weights.shard_files import ShardReader, opened_shards
from pipeline.storage.atomic import sync_folder
from pipeline.storage.digests import files_sha256
from pipeline.storage.shards import shards_of
from pipeline.training.distributed.fsdp import placed_like, save_gathered
from pipeline.training.optimiser import NamedParameters, Optimiser, load_optimiser, save_optimiser
from pipeline.training.step_log import StepReport
from pipeline.training.watch.held_out import HeldOutReport, held_out_of
from pipeline.types import content_hash

WEIGHTS, OPTIMISER, PROGRESS = "weights.safetensors", "optimiser.safetensors", "progress.json"


@dataclass(frozen=True, slots=True)
class CheckpointProgress:
    """Progress of a training run.

    Attributes:
        key: what identifies the run: settings, loss, seed and examples.
        step: the number of completed optimiser steps.
        history: their reports.
        running: running statistics of the loss, by name.
        evaluations: on held-out pairs, so far.
        kept: the step whose weights ``keep_weights`` wrote for the end of the run; None: no step's.
    """

    key: str
    step: int
    history: tuple[StepReport, ...]
    running: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[HeldOutReport, ...] = ()
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The tensors that a training run changes.

    Attributes:
        parameters: trained parameters, of the policy and of auxiliary modules.
        buffers: tensors that change without a gradient.
        optimiser: of ``parameters``.
    """

    parameters: NamedParameters
    buffers: Mapping[str, torch.Tensor]
    optimiser: Optimiser

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers."""
        return {**self.parameters, **self.buffers}


def save_checkpoint(folder: Path, progress: CheckpointProgress, trained: Trained, accelerator: Accelerator) -> Path:
    """Write ``folder/step_NNNNNN`` and remove older checkpoints; return its path.

    Every process must call this, since each may hold a part; the main one writes.
    """
    place = checkpoint_place(folder, progress.step)
    partial = _begin(place, accelerator)
    save_gathered(partial / WEIGHTS, trained.tensors, accelerator)
    save_optimiser(trained.optimiser, trained.parameters, partial / OPTIMISER, accelerator)
    if accelerator.is_main_process:
        _complete(place, progress)
    accelerator.wait_for_everyone()
    return place


def _begin(place: Path, accelerator: Accelerator) -> Path:
    """Make an empty folder beside ``place``, in the main process."""
    partial = place.with_suffix(".partial")
    if accelerator.is_main_process:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    return partial


def _complete(place: Path, progress: CheckpointProgress) -> None:
    folder, partial = place.parent, place.with_suffix(".partial")
    written = [file for name in (WEIGHTS, OPTIMISER) for file in shards_of(partial / name)]
    digests = zip(written, files_sha256(written), strict=True)
    told = {**asdict(progress), "files": {file.name: digest for file, digest in digests}}
    (partial / PROGRESS).write_text(json.dumps({**told, "sha256": _digest(told)}), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    sync_folder(folder)
    for old in folder.glob("step_*"):
        if old != place:
            shutil.rmtree(old)
    _remove_kept(folder, but=progress.kept)


def checkpoint_place(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` steps."""
    return folder / f"step_{step:06d}"


def kept_place(folder: Path, step: int) -> Path:
    """Return the folder for the weights after ``step`` steps, kept for the end of the run."""
    return folder / f"kept_{step:06d}"


def keep_weights(
    folder: Path, step: int, trained: Trained, accelerator: Accelerator, *, state: bool, needed: int | None
) -> None:
    """Write the trained tensors after ``step`` steps, for the end of the run, in place of those kept before.

    Every process must call this.

    Args:
        folder: of checkpoints.
        step: how many were taken.
        trained: the tensors and their optimiser.
        accelerator: gives rank.
        state: also write the optimiser's state, for the next run to go on with.
        needed: the step whose kept weights a run that resumes at the newest checkpoint would need; they stay.
    """
    place = kept_place(folder, step)
    if accelerator.is_main_process:
        # First, so that at most two are on the disk; after a kill the run repeats the steps since its checkpoint.
        _remove_kept(folder, but=needed)
    partial = _begin(place, accelerator)
    save_gathered(partial / WEIGHTS, trained.tensors, accelerator)
    if state:
        save_optimiser(trained.optimiser, trained.parameters, partial / OPTIMISER, accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        sync_folder(folder)
    accelerator.wait_for_everyone()


def _kept_file(folder: Path, step: int) -> Path:
    """Return where development versions after 0.1.0 kept weights, without a folder or an optimiser's state."""
    return kept_place(folder, step).with_suffix(".safetensors")


def _remove_kept(folder: Path, but: int | None) -> None:
    needed = () if but is None else (kept_place(folder, but), _kept_file(folder, but))
    for place in folder.glob("kept_*"):
        if place not in needed:
            place.unlink() if place.is_file() else shutil.rmtree(place)


def take_up_kept(folder: Path, step: int, trained: Trained, *, state: bool) -> None:
    """Restore the trained tensors after ``step`` steps from kept weights or a checkpoint; ``state``: AdamW's too.

    Raises ``RunError`` if they are in neither.
    """
    places = (kept_place(folder, step), checkpoint_place(folder, step))
    place = next((place for place in places if place.is_dir()), places[0])
    file = place / WEIGHTS if place.is_dir() or state else _kept_file(folder, step)
    try:
        with opened_shards(file if file.is_file() else place / WEIGHTS) as weights:
            _copy_weights(place, weights, trained.tensors)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{place / WEIGHTS}: not readable weights: {error}") from None
    if state:
        load_optimiser(trained.optimiser, trained.parameters, place / OPTIMISER)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in ``folder``, or None; ignore any that a kill left half written."""
    whole = sorted(path for path in folder.glob("step_*") if path.suffix != ".partial")
    return whole[-1] if whole else None


def load_checkpoint(place: Path, key: str, trained: Trained) -> CheckpointProgress:
    """Restore weights and optimiser state from the checkpoint ``place``.

    Raises:
        UserError: it belongs to a training run with other settings, seed or examples.
        RunError: it cannot be read.
    """
    try:
        plain = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
        if plain.pop("sha256") != _digest(plain):
            raise ValueError(f"{PROGRESS} has changed since it was written (SHA-256)")
        history = tuple(StepReport(**report) for report in plain["history"])
        evaluations = tuple(held_out_of(report) for report in plain.get("evaluations", ()))
        told = plain["key"], plain["step"], history, plain["running"], evaluations, plain.get("kept")
        progress = CheckpointProgress(*told)
        for name, digest in zip(plain["files"], files_sha256([place / name for name in plain["files"]]), strict=True):
            if plain["files"][name] != digest:
                raise ValueError(f"{name} has changed since it was written (SHA-256)")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(place, error) from None
    if progress.key != key:
        raise UserError(
            f"{place}: a checkpoint of training with other settings, seed or examples; remove the folder to start again"
        )
    try:
        with opened_shards(place / WEIGHTS) as weights:
            _copy_weights(place, weights, trained.tensors)
    except (OSError, SafetensorError) as error:
        raise _unreadable(place, error) from None
    # Before the first step, AdamW already has its starting state: empty or carried over.
    if progress.step > 0:
        load_optimiser(trained.optimiser, trained.parameters, place / OPTIMISER)
    return progress


def _unreadable(place: Path, error: Exception) -> RunError:
    return RunError(
        f"{place}: not a readable checkpoint: {error}; remove this folder to train this round from its start"
    )


def _digest(told: Mapping[str, object]) -> str:
    # As it will be read: JSON has no tuples.
    return content_hash(json.loads(json.dumps(told)), length=64)


@torch.no_grad()
def _copy_weights(place: Path, weights: ShardReader, tensors: Mapping[str, torch.Tensor]) -> None:
    differing = _differing(weights, tensors)
    if differing:
        raise UserError(f"{place}: a checkpoint of another model ({differing[0]} is missing or has another shape)")
    for name, tensor in tensors.items():
        tensor.copy_(placed_like(weights[name], tensor))


def _differing(weights: ShardReader, tensors: Mapping[str, torch.Tensor]) -> Sequence[str]:
    return [name for name, t in tensors.items() if name not in weights or weights.shape(name) != t.shape]
