"""What each stage's key depends on: its part of the config, its inputs, the seed.

The one place that says which stage reads which. Torch-free.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from pipeline.config import ClassifierScorer, Closed, FileData, PretrainedPolicy, RunConfig
from pipeline.store import RunFolder, Stage, StageKey, file_sha256
from pipeline.types import UserError

# Stages of a round in the order in which they run.
START_STAGES = ("data", "policy", "evaluation_samples", "evaluation")
ITERATIVE_STAGES = ("samples", "labels", "pairs", "reference", "policy", "evaluation_samples", "evaluation")
OFFLINE_STAGES = ("pairs", "reference", "policy", "evaluation_samples", "evaluation")

HASHED_WHOLE = 64 * 1024 * 1024


def stage_key(run: RunFolder, config: RunConfig, round_: int, name: str) -> StageKey:
    """The key of a stage whose inputs are complete. Raises ``RunError`` if one of them is not."""
    sections, inputs = _dependencies(run, config, round_, name)
    keys = {stage.title: stage.require().key for stage in inputs}
    plain = {section: _plain(config, section) for section in sections}
    if name == "data":
        plain["files"] = _data_digests(config)
    if name in ("labels", "evaluation") and isinstance(config.scorer, ClassifierScorer):
        plain["scorer_files"] = _model_digest(Path(config.scorer.path))
    if name == "policy" and round_ == 0 and isinstance(config.policy, PretrainedPolicy):
        plain["model_files"] = _model_digest(Path(config.policy.path))
    return StageKey(config=plain, inputs=keys, seed=config.seed)


def reference_round(config: RunConfig, round_: int) -> int:
    """Which round's policy is the reference of ``round_`` (for ema: the round whose average is)."""
    training = config.training
    match training.reference:
        case "fixed":
            return 0
        case "previous" | "ema":
            return round_ - 1
        case "every_n":
            return ((round_ - 1) // training.reference_every) * training.reference_every


def reference_stage(run: RunFolder, config: RunConfig, round_: int) -> Stage:
    """The stage that holds the reference model of ``round_``."""
    source = reference_round(config, round_)
    averaged = config.training.reference == "ema" and source > 0
    return run.stage(source, "average" if averaged else "policy")


def _dependencies(run: RunFolder, config: RunConfig, round_: int, name: str) -> tuple[tuple[str, ...], list[Stage]]:
    data, start = run.stage(0, "data"), run.stage(0, "policy")
    before, here = max(round_ - 1, 0), round_
    match name:
        case "data":
            return ("mode", "rounds_if_offline", "prompts", "pairs", "held_out", "warm_start_texts"), []
        case "policy" if round_ == 0:
            return ("policy", "chat", "warm_start"), [data]
        case "samples":
            return ("sampler", "sampling", "chat", "prompts_per_round", "shard_size"), [
                data,
                run.stage(before, "policy"),
            ]
        case "labels":
            return ("scorer",), [run.stage(here, "samples")]
        case "pairs" if config.mode == "offline":
            return ("chat", "rounds"), [data, start]
        case "pairs":
            return ("pairing",), [run.stage(here, "labels")]
        case "reference":
            return ("chat", "training.dtype"), [run.stage(here, "pairs"), reference_stage(run, config, here)]
        case "policy":
            own = [run.stage(here, "pairs"), run.stage(here, "reference"), run.stage(before, "policy")]
            return ("loss", "training"), own
        case "average":
            return ("training.reference_decay",), [reference_stage(run, config, here), run.stage(here, "policy")]
        case "evaluation_samples":
            return ("evaluation", "sampling.max_tokens", "sampling.stop", "sampler", "chat"), [
                data,
                run.stage(here, "policy"),
            ]
        case "evaluation":
            earlier = [run.stage(number, "evaluation") for number in sorted({0, before}) if number < here]
            return ("evaluation", "scorer", "loss", "training.dtype"), [run.stage(here, "evaluation_samples"), *earlier]
    raise ValueError(f"no stage is called {name!r}")


def _plain(config: RunConfig, section: str) -> JsonValue:
    if section == "rounds_if_offline":
        return config.rounds if config.mode == "offline" else None
    if section == "warm_start_texts":
        return config.warm_start is not None
    value: object = config
    for part in section.split("."):
        value = value.__dict__[part] if isinstance(value, Closed) else None
    if isinstance(value, Closed):
        return value.identity()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"section {section} has no plain form")


def _data_digests(config: RunConfig) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    sources = {"prompts": config.prompts, "pairs": config.pairs}
    paths = {name: source.path for name, source in sources.items() if isinstance(source, FileData)}
    if config.held_out.path is not None:
        paths["held_out"] = config.held_out.path
    for name, path in paths.items():
        found[name] = _digest(_files_of(Path(path), name))
    return found


def _files_of(path: Path, name: str) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    raise UserError(f"{name}.path: {path}: no such file or folder")


def _model_digest(path: Path) -> str:
    """Small files by content, large ones (weights) by size; a hub name has no files here."""
    return _digest(sorted(file for file in path.iterdir() if file.is_file())) if path.is_dir() else str(path)


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}:{size}:{file_sha256(file) if size <= HASHED_WHOLE else ''}\n".encode())
    return total.hexdigest()[:16]
