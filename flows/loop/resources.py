"""What a stage shares with other runs: the accelerator, a judge's server. Torch-free."""

from typing import Literal

from flows.run_folder.growth import ADDED
from flows.run_folder.specs.suite_keys import SUITE_SAMPLES, SUITES
from flows.workers.pool.overlap import streams_labels, streams_reference
from pipeline.config import (
    ClassifierScorer,
    ClipScorer,
    ImageClassifierScorer,
    JudgeScorer,
    PairwiseScorer,
    RunConfig,
    ScorerSettings,
    ServerSampler,
    compares,
    scorers_of,
)
from pipeline.config.evaluation.suites import RewardBenchSuite, suite_judge

Resource = Literal["gpu", "judge"]
# Stages that compute nothing on an accelerator; "data" of images encodes them.
_PLAIN = frozenset(("data", ADDED, "pairs"))
_SAMPLED = frozenset(("samples", "second_samples", "calibration", "evaluation_samples", SUITE_SAMPLES))


def used_by(config: RunConfig, name: str) -> tuple[Resource, ...]:
    """Return what stage ``name`` uses, in the order in which all stages of all runs must wait for it.

    Labels that are made while samples are count the accelerator of the samples: whoever has the judge never waits for
    an accelerator, so two runs never wait for each other.
    """
    scorers = _scorers(config, name)
    judge = any(isinstance(scorer, JudgeScorer) for scorer in scorers)
    gpu = _on_accelerator(config, name, scorers)
    if name == "labels" and streams_labels(config):
        gpu = gpu or streams_reference(config) or _on_accelerator(config, "samples", [])
    used: list[Resource] = [*(["gpu"] * gpu), *(["judge"] * judge)]  # type: ignore[list-item]
    return tuple(used)


def _on_accelerator(config: RunConfig, name: str, scorers: list[ScorerSettings]) -> bool:
    if name in _PLAIN:
        return name == "data" and config.modality == "image"
    if name in _SAMPLED:
        return not (isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None)
    if name in ("labels", "gold", "gate", SUITES):
        models = ClassifierScorer | PairwiseScorer | ImageClassifierScorer | ClipScorer
        silver = name in ("labels", SUITES) and config.discriminator is not None
        return silver or any(isinstance(scorer, models) for scorer in scorers)
    return True


def _scorers(config: RunConfig, name: str) -> list[ScorerSettings]:
    """The labellers that a stage asks."""
    asked: list[ScorerSettings] = []
    if config.scorer is not None:
        gold = config.discriminator is not None
        if name in ("evaluation", "gold") or (name == "labels" and not gold):
            asked.append(config.scorer)
        if name == SUITES and any(isinstance(suite, RewardBenchSuite) for suite in config.evaluation.suites):
            asked.append(config.scorer)
        if name == "gate" and compares(config.scorer):
            asked.append(config.scorer)
    if name == "gate" and config.gate is not None and config.gate.second is not None:
        asked.append(config.gate.second)
    if name == SUITES:
        asked += [judge for suite in config.evaluation.suites if (judge := suite_judge(suite)) is not None]
    return [scorer for settings in asked for _, scorer in scorers_of(settings)]
