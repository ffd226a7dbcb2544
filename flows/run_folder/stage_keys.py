"""What each stage's key depends on: its part of the config, its inputs, the seed.

The one place that says which stage reads which. Torch-free.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage, reference_stages
from flows.run_folder.approvals import answers_before
from flows.run_folder.growth import ADDED, added_stages, digest_when_read, may_grow
from pipeline.config import (
    ClassifierScorer,
    Closed,
    DatasetData,
    FileData,
    FunctionScorer,
    JudgeScorer,
    PairwiseScorer,
    PretrainedPolicy,
    RunConfig,
    Scorer,
    scorers_of,
)
from pipeline.config.loss.needs import needs_of
from pipeline.config.pairing import replayed_ages
from pipeline.config.reward_model import Discriminator, bought, buys
from pipeline.data.sources import files_of, held_out_source
from pipeline.errors import UserError
from pipeline.storage.digests import digest, model_digest
from pipeline.storage.manifest import StageKey
from pipeline.storage.run_folder import RunFolder, Stage

# Stages of a round in the order in which they run; what a loss does not read is left out (pipeline/config/loss).
START_STAGES = ("data", "policy", "evaluation_samples", "evaluation")
OFFLINE_STAGES = ("pairs", "calibration", "reference", "policy", "evaluation_samples", "evaluation", "gate")
ITERATIVE_STAGES = (ADDED, "samples", "gold", "discriminator", "labels", *OFFLINE_STAGES)


def stage_key(
    run: RunFolder, config: RunConfig, round_: int, name: str, known: Mapping[str, str] | None = None
) -> StageKey:
    """The key of a stage whose inputs are complete, or in ``known`` by title. Raises ``RunError`` if one is not."""
    sections, inputs = dependencies(run, config, round_, name)
    keys = {stage.title: (known or {}).get(stage.title) or stage.require().key for stage in inputs}
    plain = {section: _plain(config, section) for section in sections}
    if name == "data":
        plain["files"] = _data_digests(run, config)
    if name == ADDED:
        plain["files"] = {"prompts": digest_when_read(run.stage(round_, name), config)}
    if name == "samples":
        # Of rounds that are only planned, what they would add is not there yet.
        keys |= {title: key for title, key in (known or {}).items() if title.endswith(f"/{ADDED}")}
    if "scorer" in sections and config.scorer is not None:
        plain |= dict(scorer_digests(config.scorer))
    if name == "gate" and config.gate is not None:
        plain["answers"] = answers_before(run, round_)
        plain |= {} if config.gate.second is None else dict(scorer_digests(config.gate.second, "gate.second"))
    if name == "policy" and round_ == 0 and isinstance(config.policy, PretrainedPolicy):
        plain["model_files"] = model_digest(Path(config.policy.path))
    if name == "discriminator" and config.discriminator is not None and config.discriminator.start is not None:
        plain["start_files"] = model_digest(Path(config.discriminator.start))
    if name == "reference":
        plain["further_models"] = {path: model_digest(Path(path)) for path in _further_models(config)}
    return StageKey(config=plain, inputs=keys, seed=config.seed)


def dependencies(run: RunFolder, config: RunConfig, round_: int, name: str) -> tuple[tuple[str, ...], list[Stage]]:
    """The parts of the config, and the stages, that a stage reads."""
    data, start = run.stage(0, "data"), run.stage(0, "policy")
    before, here = max(round_ - 1, 0), round_
    origin = parent(run, config, round_)
    match name:
        case "data":
            return ("mode", "rounds_if_offline", "prompts", "pairs", "held_out", "warm_start_texts"), []
        case "policy" if round_ == 0:
            return ("policy", "chat", "warm_start"), [data]
        case "added_prompts":
            return ("prompts",), [data, *added_stages(run, before)]
        case "samples":
            return ("sampler", "sampling", "chat", "prompts_per_round", "shard_size"), [
                data,
                *added_stages(run, here),
                run.stage(origin, "policy"),
            ]
        case "gold":
            asked = config.discriminator is not None and config.discriminator.select != "random" and here > 1
            inputs = [run.stage(here, "samples"), *([run.stage(before, "discriminator")] if asked else [])]
            return ("scorer", "bought"), inputs
        case "discriminator":
            gold = [run.stage(number, "gold") for number in range(1, here + 1)]
            return ("discriminator", "chat"), [*gold, *([run.stage(before, name)] if here > 1 else []), start]
        case "labels" if config.discriminator is not None:
            return ("silver",), [run.stage(here, "samples"), *_labellers(run, config, config.discriminator, here)]
        case "labels":
            return ("scorer",), [run.stage(here, "samples")]
        case "pairs" if config.mode == "offline":
            return ("chat", "rounds", "pairing", "trained_on"), [data, start, *_earlier_pairs(run, config, here)]
        case "pairs":
            anchored = config.replay is not None and config.replay.anchor > 0
            drifting = config.replay is not None and config.replay.max_drift is not None
            beside = [*([data, start] if anchored else []), *([run.stage(origin, "policy")] if drifting else [])]
            inputs = [run.stage(here, "labels"), *_earlier_pairs(run, config, here), *beside]
            return ("pairing", "replay", "trained_on", *(("chat",) if anchored else ())), inputs
        case "calibration":
            sections = ("sampler", "sampling.max_tokens", "sampling.stop", "chat", "shard_size")
            return sections, [run.stage(here, "pairs"), reference_stage(run, config, here)]
        case "reference":
            sections = ("chat", "training.dtype", "stored", "training.references", "training.contrastive")
            given = [stage for stage in _made(run, config, here) if stage.name != "reference"]
            return sections, [*given, *reference_stages(run, config, here)]
        case "policy":
            own = [*_made(run, config, here), run.stage(origin, "policy")]
            beside = [reference_stage(run, config, here)] if needs_of(config.loss).live_reference else []
            return ("loss", "training"), [*own, *beside]
        case "average":
            return ("training.reference_decay", "chat"), [reference_stage(run, config, here), run.stage(here, "policy")]
        case "evaluation_samples":
            return ("evaluation", "sampling.max_tokens", "sampling.stop", "sampler", "chat"), [
                data,
                run.stage(here, "policy"),
            ]
        case "evaluation":
            earlier = [run.stage(number, "evaluation") for number in sorted({0, origin}) if number < here]
            return ("evaluation", "scorer", "loss", "training.dtype"), [run.stage(here, "evaluation_samples"), *earlier]
        case "gate":
            decided = [run.stage(before, name)] if before > 0 else [run.stage(0, "evaluation")]
            return ("gate", "evaluation", "scorer"), [run.stage(here, "evaluation"), *decided]
    raise ValueError(f"no stage is called {name!r}")


def _made(run: RunFolder, config: RunConfig, round_: int) -> list[Stage]:
    """What the loss reads of the stages between labels and policy."""
    names = {
        "pairs": True,
        "calibration": needs_of(config.loss).calibration,
        "reference": needs_of(config.loss).stored_reference,
    }
    return [run.stage(round_, name) for name, read in names.items() if read]


def _labellers(run: RunFolder, config: RunConfig, settings: Discriminator, round_: int) -> list[Stage]:
    """What a round with a discriminator takes its labels from."""
    gold = [run.stage(round_, "gold")] if buys(settings, round_) else []
    match settings.silver:
        case "none":
            return gold
        case "self":
            return [*gold, *(run.stage(number, "policy") for number in sorted({0, parent(run, config, round_)}))]
        case "online":
            return [*gold, run.stage(round_, "discriminator")]
        case "static":
            return [*gold, run.stage(1, "discriminator")]


def _earlier_pairs(run: RunFolder, config: RunConfig, round_: int) -> list[Stage]:
    """The pairs stages that this round's replays, or drops what they hold."""
    ages = [] if config.replay is None else replayed_ages(config.replay, round_)
    rounds = range(1, round_) if config.pairing.drop_repeated else sorted(round_ - age for age in ages)
    return [run.stage(earlier, "pairs") for earlier in rounds]


def _further_models(config: RunConfig) -> list[str]:
    contrast = config.training.contrastive
    return [*config.training.references, *([] if contrast is None else [contrast.positive, contrast.negative])]


def _plain(config: RunConfig, section: str) -> JsonValue:
    if section == "trained_on":
        return {"groups": needs_of(config.loss).groups, "win_against": needs_of(config.loss).opponent}
    if section == "stored":
        return _stored(config)
    if section in ("bought", "silver"):
        return _of_discriminator(config, section)
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


def _of_discriminator(config: RunConfig, section: str) -> JsonValue:
    """What of the discriminator's settings decides which gold is bought, or who labels the rest."""
    settings = config.discriminator
    assert settings is not None, "the stages are run where a discriminator is configured"
    if section == "bought":
        first = bought(settings, config.rounds, 1)
        return {"first": first, "budget": settings.budget, "select": settings.select, "gold": settings.gold}
    implicit: JsonValue = (
        {"beta": config.loss.beta, "dtype": config.training.dtype} if settings.silver == "self" else None
    )
    return {"by": settings.silver, "implicit": implicit}


def _stored(config: RunConfig) -> JsonValue:
    """What of the loss decides the rows of the reference stage."""
    loss = config.loss
    return {
        "references": needs_of(loss).references,
        "entropy": loss.dispersion is not None,
        "weights": loss.weights.identity() if needs_of(loss).contrast else None,
        "mismatched": needs_of(loss).baseline,
        "text": needs_of(loss).only_chosen,
    }


def _data_digests(run: RunFolder, config: RunConfig) -> dict[str, JsonValue]:
    sources = {"prompts": config.prompts, "pairs": config.pairs, "held_out": held_out_source(config)}
    found: dict[str, JsonValue] = {
        name: digest(files_of(source)) for name, source in sources.items() if isinstance(source, FileData | DatasetData)
    }
    return found | ({"prompts": digest_when_read(run.stage(0, "data"), config)} if may_grow(config) else {})


def scorer_digests(settings: Scorer, place: str = "scorer") -> Iterator[tuple[str, JsonValue]]:
    """Of the files that labels depend on; ``place``: where ``settings`` stand in the config."""
    for field, scorer in scorers_of(settings, place):
        match scorer:
            case ClassifierScorer() | PairwiseScorer():
                yield f"{field}.files", model_digest(Path(scorer.path))
            case FunctionScorer():
                yield f"{field}.file", _file_digest(scorer.file, f"{field}.file")
            case JudgeScorer() if scorer.template is not None:
                yield f"{field}.template", _file_digest(scorer.template, f"{field}.template")


def _file_digest(path: str, field: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"{field}: {path}: no such file")
    return digest([Path(path)])


def reference_name(number: int) -> str:
    """The folder of the reference stage that the loss's reference ``number``, from 0, fills."""
    return f"reference_{number}"
