"""All stages: what each one's key depends on, the stages that it opens, and the rounds that have it. Torch-free.

flows/stages/run.py binds their names to the code that makes them.
"""

from collections.abc import Callable
from dataclasses import replace

from flows.run_folder import inputs as made_from
from flows.run_folder import key_parts as keyed
from flows.run_folder.ancestry import MIXED_MODEL, SECOND_POLICY, SECOND_SAMPLES, mixed_path, second_path
from flows.run_folder.growth import ADDED
from flows.run_folder.inputs import Place, anchored, nothing, stores_reference
from flows.run_folder.key_parts import IDS_ONLY
from flows.run_folder.specs import suite_keys as of_suites
from flows.run_folder.specs.image_keys import evaluation_facts, scored_reference_facts
from flows.run_folder.specs.stage_spec import RunPart, Sections, StageSpec
from flows.run_folder.specs.suite_keys import SUITE_SAMPLES, SUITES
from pipeline.config import RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.storage.run_folder import RunFolder, Stage


def _pairs_sections(place: Place) -> Sections:
    if place.config.mode == "offline":
        return ("chat", "rounds", "pairing", "trained_on")
    return ("pairing", "replay", "trained_on", *(("chat",) if anchored(place.config) else ()))


def _policy_sections(place: Place) -> Sections:
    return ("policy", f"chat{IDS_ONLY}", "warm_start") if place.round == 0 else ("loss", "training")


def _labels_sections(place: Place) -> Sections:
    return ("scorer",) if place.config.discriminator is None else ("silver",)


def _pairs_two(config: RunConfig, round_: int) -> bool:
    return second_path(config) is not None


def _given_model(name: str, path: Callable[[RunConfig], str | None]) -> StageSpec:
    ids = (f"chat{IDS_ONLY}",)
    given = StageSpec(name, "steps", ids, nothing, ("start",), lambda place: keyed.files_of_model(path(place.config)))
    return replace(given, made=lambda config, round_: path(config) is not None)


_ITERATIVE: tuple[RunPart, ...] = ("iterative",)
_ROUNDS: tuple[RunPart, ...] = ("offline", "iterative")
_ALL: tuple[RunPart, ...] = ("start", "offline", "iterative")

# In the order in which they run.
_SPECS = (
    StageSpec(
        "data",
        unit="steps",
        sections=("mode", "rounds_if_offline", "prompts", "pairs", "held_out", "warm_start_texts"),
        inputs=nothing,
        parts=("start",),
        facts=keyed.source_files,
        bound="sources",
    ),
    StageSpec(
        ADDED,
        unit="prompts",
        sections=("prompts",),
        inputs=made_from.of_added_prompts,
        parts=_ITERATIVE,
        facts=keyed.prompt_files,
        made=lambda config, round_: False,
    ),
    _given_model(MIXED_MODEL, mixed_path),
    StageSpec(
        "samples",
        unit="prompts",
        sections=("sampler", "sampling", "chat", "prompts_per_round", "shard_size"),
        inputs=made_from.of_samples,
        parts=_ITERATIVE,
        sampled=True,
    ),
    _given_model(SECOND_POLICY, second_path),
    StageSpec(
        SECOND_SAMPLES,
        unit="prompts",
        sections=("sampler", "second", "chat", "prompts_per_round", "shard_size"),
        inputs=made_from.of_second_samples,
        parts=_ITERATIVE,
        bound="samples",
        made=_pairs_two,
        sampled=True,
    ),
    StageSpec(
        "gold",
        unit="comparisons",
        sections=("scorer", "bought"),
        inputs=made_from.of_gold,
        parts=_ITERATIVE,
        opens=made_from.opened_by_labelling,
        made=made_from.buys_gold,
    ),
    StageSpec(
        "discriminator",
        unit="steps",
        sections=("discriminator", "chat"),
        inputs=made_from.of_discriminator,
        parts=_ITERATIVE,
        facts=keyed.start_files,
        opens=made_from.opened_by_labelling,
        bound="members",
        made=made_from.refits,
    ),
    StageSpec(
        "labels",
        unit="prompts",
        sections=_labels_sections,
        inputs=made_from.of_labels,
        parts=_ITERATIVE,
        opens=made_from.opened_by_labelling,
        by_shard="samples",
        bound="samples",
        made=lambda config, round_: not _pairs_two(config, round_),
    ),
    StageSpec(
        "pairs",
        unit="steps",
        sections=_pairs_sections,
        inputs=made_from.of_pairs,
        parts=_ROUNDS,
        facts=keyed.drift_facts,
    ),
    StageSpec(
        "calibration",
        unit="prompts",
        sections=("sampler", "sampling.max_tokens", "sampling.stop", f"chat{IDS_ONLY}", "shard_size"),
        inputs=made_from.of_calibration,
        parts=_ROUNDS,
        bound="pairs",
        made=lambda config, round_: needs_of(config.loss).calibration,
        sampled=True,
    ),
    StageSpec(
        "reference",
        unit="responses",
        sections=(f"chat{IDS_ONLY}", "training.dtype", "stored", "training.references", "training.contrastive"),
        inputs=made_from.of_reference,
        parts=_ROUNDS,
        facts=scored_reference_facts,
        opens=made_from.opened_by_training,
        made=lambda config, round_: stores_reference(config),
    ),
    StageSpec(
        "advantages",
        unit="responses",
        sections=(f"chat{IDS_ONLY}", "training.dtype", "estimated"),
        inputs=made_from.of_advantages,
        parts=_ROUNDS,
        facts=keyed.held_facts,
        opens=made_from.opened_by_training,
        made=lambda config, round_: needs_of(config.loss).advantages,
    ),
    StageSpec(
        "policy",
        unit="steps",
        sections=_policy_sections,
        inputs=made_from.of_policy,
        parts=_ALL,
        facts=keyed.start_model_facts,
        opens=made_from.opened_by_training,
        bound="training",
    ),
    StageSpec(
        "evaluation_samples",
        unit="prompts",
        sections=("evaluation", "sampling.max_tokens", "sampling.stop", "sampler", "chat"),
        inputs=made_from.of_evaluation_samples,
        parts=_ALL,
        bound="evaluation",
        sampled=True,
    ),
    StageSpec(
        SUITE_SAMPLES,
        unit="answers",
        sections=("sampling.max_tokens", "sampling.stop", "sampler", "chat"),
        inputs=of_suites.of_suite_samples,
        parts=_ALL,
        facts=of_suites.asked_facts,
        opens=of_suites.opened_by_suites,
        made=of_suites.asks_suites,
        sampled=True,
    ),
    StageSpec(
        SUITES,
        unit="answers",
        sections=("evaluation",),
        inputs=of_suites.of_suites,
        parts=_ALL,
        facts=of_suites.measured_facts,
        opens=of_suites.opened_by_suites,
        made=of_suites.measures_suites,
        weights=False,
    ),
    StageSpec(
        "evaluation",
        unit="responses",
        sections=("evaluation", "scorer", "loss", "training.dtype"),
        inputs=made_from.of_evaluation,
        parts=_ALL,
        facts=evaluation_facts,
        opens=made_from.opened_by_evaluation,
        bound="evaluation",
    ),
    StageSpec(
        "gate",
        unit="prompts",
        sections=("gate", "evaluation", "scorer"),
        inputs=made_from.of_gate,
        parts=_ROUNDS,
        facts=keyed.gate_facts,
        opens=made_from.opened_by_gate,
        weights=False,
        made=lambda config, round_: config.gate is not None,
    ),
    StageSpec(
        "average",
        unit="steps",
        sections=("training.reference_decay", f"chat{IDS_ONLY}"),
        inputs=made_from.of_average,
        opens=made_from.opened_by_training,
        parts=(),
        made=lambda config, round_: config.training.reference == "ema",
    ),
)
STAGES = {spec.name: spec for spec in _SPECS}


def stage_names(part: RunPart) -> tuple[str, ...]:
    """The stages that a part of a run asks for by name, in the order in which they run."""
    return tuple(name for name, spec in STAGES.items() if part in spec.parts)


def names_in(config: RunConfig, round_: int) -> tuple[str, ...]:
    """The stages that a round may have, in the order in which they run."""
    return stage_names("start" if round_ == 0 else config.mode)


def spec_of(name: str) -> StageSpec:
    """The stage called ``name``. Raises ``ValueError`` if there is no such stage."""
    spec = STAGES.get(name)
    if spec is None:
        raise ValueError(f"no stage is called {name!r}")
    return spec


def made_in(config: RunConfig, round_: int, name: str) -> bool:
    """Whether all rounds like ``round_`` have the stage ``name``, one that its part of a run asks for."""
    return spec_of(name).made(config, round_)


def inputs_of(run: RunFolder, config: RunConfig, round_: int, name: str) -> list[Stage]:
    """The stages whose keys are in the key of stage ``name``."""
    return spec_of(name).inputs(Place(run, config, round_))


def reads(run: RunFolder, config: RunConfig, round_: int, name: str) -> list[Stage]:
    """All stages whose files the stage ``name`` opens.

    Its key names stages that vouch for the others: an evaluation depends on its samples, and reads the policy too.
    """
    spec, place = spec_of(name), Place(run, config, round_)
    return list(dict.fromkeys((*spec.inputs(place), *spec.opens(place))))
