"""The parts of a stage's key besides the keys of its inputs: config sections and file digests. Torch-free."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.approvals import answers_before
from flows.run_folder.growth import ADDED, SIZES, digest_of, digest_when_read, may_grow
from flows.run_folder.inputs import Place
from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    Closed,
    DatasetData,
    DiffusionPolicy,
    FileData,
    FunctionScorer,
    ImageClassifierScorer,
    ImageData,
    JudgeScorer,
    MixtureData,
    PairData,
    PairwiseScorer,
    PretrainedPolicy,
    RunConfig,
    ScorerSettings,
    scorers_of,
)
from pipeline.config.data.limits import OF_TOKENS
from pipeline.config.labellers.reward_model import Discriminator, bought
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.terms import TokenAdvantageHead
from pipeline.config.training import START
from pipeline.data.sources import files_of, held_out_source
from pipeline.errors import RunError, UserError
from pipeline.models.weights.weight_format import held_as_stored
from pipeline.storage.digests import digest, file_sha256, model_digest
from pipeline.storage.integrity import model_tree
from pipeline.storage.manifest import StageKey

_FILES = FileData | DatasetData | MixtureData | ImageData
# After "chat": only what decides token ids, for stages that read no text.
IDS_ONLY = ":ids"


def plain_section(config: RunConfig, section: str) -> JsonValue:
    """A config section by its dotted name, or the values derived for keys under that name, as JSON."""
    if section in _DERIVED:
        return _DERIVED[section](config)
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


def chat_identity(config: RunConfig) -> dict[str, JsonValue]:
    """What decides the tokens of messages, besides the model's own files; of a template file, its content."""
    return {**config.chat.identity(), **_template_file(config)}


def _template_file(config: RunConfig) -> dict[str, JsonValue]:
    file = config.chat.template_file
    if file is not None and not Path(file).is_file():
        raise UserError(f"chat.template_file: {file}: no such file")
    return {} if file is None else {"template_file": file_sha256(Path(file))}


def _trained_on(config: RunConfig) -> JsonValue:
    """Settings of the loss that determine the rows of the pairs stage."""
    return {"groups": needs_of(config.loss).groups, "win_against": needs_of(config.loss).opponent}


def _stored(config: RunConfig) -> JsonValue:
    """Settings of the loss that determine the rows of the reference stage."""
    loss = config.loss
    return {
        "references": needs_of(loss).references,
        "entropy": loss.inputs.dispersion is not None,
        "weights": loss.inputs.weights.identity() if needs_of(loss).contrast else None,
        "mismatched": needs_of(loss).baseline,
        "text": needs_of(loss).only_chosen,
    }


def _estimated(config: RunConfig) -> JsonValue:
    """Settings of the loss that determine the rows of the advantages stage."""
    head = config.loss.inputs.head
    assert isinstance(head, TokenAdvantageHead), "the stage runs only for it"
    return {"gamma": head.gamma, "lambda": head.gae_lambda, "deviation": head.deviation}


def _bought(config: RunConfig) -> JsonValue:
    """Settings of the discriminator that determine which gold is bought."""
    settings = _discriminator(config)
    first = bought(settings, config.rounds, 1)
    return {"first": first, "budget": settings.budget, "select": settings.select, "gold": settings.gold}


def _silver(config: RunConfig) -> JsonValue:
    """Settings that determine who labels the responses without gold."""
    silver = _discriminator(config).silver
    dtype = config.training.dtype
    implicit: JsonValue = (
        {"beta": config.loss.inputs.beta, "dtype": dtype, **_held(config)} if silver == "self" else None
    )
    return {"by": silver, "implicit": implicit}


def _discriminator(config: RunConfig) -> Discriminator:
    assert config.discriminator is not None, "the stages run only if a discriminator is configured"
    return config.discriminator


def _chat_ids(config: RunConfig) -> JsonValue:
    """Settings that determine the ids of conversations."""
    return {name: value for name, value in chat_identity(config).items() if name != "thinking"}


def _second(config: RunConfig) -> JsonValue:
    """Settings of the second policy's samples."""
    drawn, second = config.sampling.model_copy(update={"mixture": None}), config.pairing.second
    return {**drawn.identity(), "n": None if second is None else second.n}


_DERIVED: Mapping[str, Callable[[RunConfig], JsonValue]] = {
    "chat": chat_identity,
    f"chat{IDS_ONLY}": _chat_ids,
    "trained_on": _trained_on,
    "stored": _stored,
    "estimated": _estimated,
    "bought": _bought,
    "silver": _silver,
    "second": _second,
    "rounds_if_offline": lambda config: config.rounds if config.mode == "offline" else None,
    "warm_start_texts": lambda config: config.warm_start is not None,
}


def source_files(place: Place) -> dict[str, JsonValue]:
    """Digests of the files with prompts, pairs and held-out prompts."""
    config = place.config
    policy = config.policy if isinstance(config.pairs, ImageData) else None
    found: dict[str, JsonValue] = {name: source_digest(source) for name, source in _sources(config).items()}
    return {
        "files": found | ({"prompts": digest_when_read(place.data, config)} if may_grow(config) else {}),
        **_rows_dropped(config),
        **({"encoded_by": model_tree(Path(policy.path))} if isinstance(policy, DiffusionPolicy) else {}),
        **({"turns": config.training.turns} if "turns" in config.training.changed else {}),
    }


def require_files_as_keyed(config: RunConfig, key: StageKey, metrics: Mapping[str, JsonValue]) -> None:
    """Raise ``RunError`` if files that a stage has read are not those of its key, under which it would be kept.

    ``metrics``: those of the stage, with the sizes of files that may grow.
    """
    told, sources = key.config.get("files"), _sources(config)
    for name, digest_ in told.items() if isinstance(told, dict) else ():
        if digest_ != (
            digest_of(metrics, config) if name == "prompts" and SIZES in metrics else source_digest(sources[name])
        ):
            raise RunError(being_written(name, sources[name].where))


def being_written(section: str, where: str) -> str:
    """Say that files are written to while they are read."""
    return f"{section}: {where}: the data is being written; nothing was kept of it, and the same command again goes on"


def _sources(config: RunConfig) -> dict[str, PairData]:
    """The sources that have files, by their names in the config."""
    sources = {"prompts": config.prompts, "pairs": config.pairs, "held_out": held_out_source(config)}
    return {name: one for name, one in sources.items() if isinstance(one, _FILES)}


def source_digest(source: PairData) -> JsonValue:
    """The digest of a source's files; of a mixture, one for each member."""
    if isinstance(source, MixtureData):
        return [digest(files_of(part)) for part in source.of]
    return digest(files_of(source))


def prompt_files(place: Place) -> dict[str, JsonValue]:
    """The digest of the prompts' files when the round read the added ones."""
    return {"files": {"prompts": digest_when_read(place.stage(ADDED), place.config)}, **_rows_dropped(place.config)}


def _rows_dropped(config: RunConfig) -> dict[str, JsonValue]:
    """Causes that ``limits`` drops, and what finds them in tokens; nothing if there are none."""
    causes, policy, scorer = config.limits.dropped, config.policy, config.scorer
    if not causes:
        return {}
    facts: dict[str, JsonValue] = {"dropped": [*causes]}
    if not OF_TOKENS.isdisjoint(causes) and isinstance(policy, PretrainedPolicy):
        facts["tokens"] = {"chat": chat_identity(config), "policy": model_digest(Path(policy.path))}
    if "long_for_reward_model" in causes and scorer is not None:
        facts["reward_model"] = {"scorer": scorer.identity(), **dict(scorer_digests(scorer))}
    return facts


def start_model_facts(place: Place) -> dict[str, JsonValue]:
    """Digests of the start policy's files."""
    policy = place.config.policy
    if place.round == 0 and isinstance(policy, DiffusionPolicy):
        return {"model_files": model_tree(Path(policy.path))}
    if place.round > 0 or not isinstance(policy, PretrainedPolicy):
        return {}
    adapter = {} if policy.adapter is None else {"adapter_files": model_digest(Path(policy.adapter))}
    return {"model_files": model_digest(Path(policy.path)), **adapter}


def files_of_model(path: str | None) -> dict[str, JsonValue]:
    """The digest of a model folder's files."""
    return {} if path is None else {"model_files": model_digest(Path(path))}


def start_files(place: Place) -> dict[str, JsonValue]:
    """Digests of the model that the first discriminator is trained from, if the config names one."""
    settings = place.config.discriminator
    return {} if settings is None or settings.start is None else {"start_files": model_digest(Path(settings.start))}


def held_facts(place: Place) -> dict[str, JsonValue]:
    """How frozen weights are held, where full training in float32 takes that decision from the start policy's files.

    Elsewhere the rest of the key says all, and earlier run folders have no more.
    """
    return _held(place.config)


def drift_facts(place: Place) -> dict[str, JsonValue]:
    """The same for pairs, if the policy's own log-probs decide which are replayed."""
    replay = place.config.replay
    return {} if replay is None or replay.max_drift is None else _held(place.config)


def reference_facts(place: Place) -> dict[str, JsonValue]:
    """Further models, and how references are held."""
    return {**further_models(place), **_held(place.config)}


def _held(config: RunConfig) -> dict[str, JsonValue]:
    policy = config.policy
    exact = isinstance(policy, PretrainedPolicy) and policy.dtype == "auto" and not held_as_stored(config)
    return {"held": "float32"} if exact else {}


def further_models(place: Place) -> dict[str, JsonValue]:
    """Digests of reference models that no stage makes."""
    training, contrast = place.config.training, place.config.training.contrastive
    paths = [
        *(path for path in training.references if path != START),
        *([] if contrast is None else [contrast.positive, contrast.negative]),
    ]
    return {"further_models": {path: model_digest(Path(path)) for path in paths}}


def gate_facts(place: Place) -> dict[str, JsonValue]:
    """People's answers to earlier gates, and digests of the second labeller's files."""
    settings = place.config.gate
    if settings is None:
        return {}
    second: dict[str, JsonValue] = {}
    if settings.second is not None:
        second = dict(scorer_digests(settings.second, "gate.second"))
        second |= shared_template(place.config, settings.second, "gate.second")
    return {"answers": answers_before(place.run, place.round), **second}


def scorer_digests(settings: ScorerSettings, place: str = "scorer") -> Iterator[tuple[str, JsonValue]]:
    """Digests of files that labels depend on; ``place``: the position of ``settings`` in the config."""
    for field, scorer in scorers_of(settings, place):
        match scorer:
            case ClassifierScorer() | PairwiseScorer() | ImageClassifierScorer() | ClipScorer():
                yield f"{field}.files", model_digest(Path(scorer.path))
            case FunctionScorer():
                yield f"{field}.file", _file_digest(scorer.file, f"{field}.file")
            case JudgeScorer() if scorer.template is not None:
                yield f"{field}.template", _file_digest(scorer.template, f"{field}.template")


def shared_template(config: RunConfig, settings: ScorerSettings, place: str = "scorer") -> dict[str, JsonValue]:
    """What the policy's chat template is given, if reward models that run here may have the same template."""
    models = any(isinstance(scorer, ClassifierScorer) for _, scorer in scorers_of(settings))
    if not config.chat.rerendered or not models:
        return {}
    return {f"{place}.chat": {"template_kwargs": config.chat.template_kwargs, **_template_file(config)}}


def _file_digest(path: str, field: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"{field}: {path}: no such file")
    return digest([Path(path)])
