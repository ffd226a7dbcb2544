"""Steps shared by the flows: the start of a run, and how a round learns from its pairs. Torch-free."""

from typing import Protocol

from flows.run_folder.ancestry import MIXED_MODEL, SECOND_POLICY, SECOND_SAMPLES
from flows.run_folder.growth import ADDED, brings_prompts
from flows.run_folder.specs.suite_keys import SUITE_SAMPLES, SUITES
from flows.run_folder.stage_table import made_in
from flows.workers.pool.overlap import streams_labels
from pipeline.config import RunConfig
from pipeline.storage.run_folder import RunFolder


class Stages(Protocol):
    """The stages of one run as calls that read like the algorithm."""

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        """Complete stage ``name`` of ``round_`` from the artefacts ``inputs``.

        Returns the name of the completed artefact (``round_001/samples``).
        """

    def streamed(self, source: str, name: str, round_: int, *inputs: str) -> str:
        """Complete ``source`` from ``inputs`` and, from its shards as they are finished, ``name``.

        Returns the name of the latter's artefact. Here one comes after the other.
        """
        return self(name, round_, self(source, round_, *inputs))

    def trained(self, round_: int, *inputs: str) -> str:
        """Complete the policy of ``round_`` from ``inputs``; with a lag, sample for the next round meanwhile.

        Here one comes after the other.
        """
        return self("policy", round_, *inputs)


class Reached(Exception):  # noqa: N818 - it ends a run, and is not an error
    """The stage after which the run should stop is complete."""


def start_run(stage: Stages, config: RunConfig) -> tuple[str, str]:
    """Make round 0: the data and the starting policy, evaluated before any preference training."""
    data = stage("data", 0)
    policy = stage("policy", 0, data)
    evaluated(stage, config, 0, policy)
    return data, policy


def evaluated(stage: Stages, config: RunConfig, round_: int, policy: str) -> str:
    """Evaluate ``policy`` on held-out prompts, and on the suites of the round; return the evaluation's artefact."""
    sampled = [stage("evaluation_samples", round_, policy)]
    if made_in(config, round_, SUITE_SAMPLES):
        sampled.append(stage(SUITE_SAMPLES, round_, policy))
    # Before the evaluation, after which a round counts as evaluated.
    if made_in(config, round_, SUITES):
        sampled.append(stage(SUITES, round_, sampled[-1]))
    return stage("evaluation", round_, *sampled)


def added(stage: Stages, run: RunFolder, config: RunConfig, round_: int) -> list[str]:
    """Take up prompts added to the source since the round before; return the artefact, if any."""
    return [stage(ADDED, round_)] if brings_prompts(run, config, round_) else []


def labelled(stage: Stages, config: RunConfig, round_: int, *inputs: str) -> str:
    """Sample from ``inputs`` and label; with a discriminator, buy gold and refit between. Return the labels.

    Where responses of two policies are paired, sample from the second one in place of labelling.
    """
    beside = [stage(MIXED_MODEL, 0)] if made_in(config, 0, MIXED_MODEL) else []
    if streams_labels(config):
        return stage.streamed("samples", "labels", round_, *inputs, *beside)
    made = [stage("samples", round_, *inputs, *beside)]
    if made_in(config, round_, SECOND_SAMPLES):
        return stage(SECOND_SAMPLES, round_, *made, stage(SECOND_POLICY, 0))
    for name in ("gold", "discriminator"):
        if made_in(config, round_, name):
            made.append(stage(name, round_, made[-1]))
    return stage("labels", round_, *made)


def learn(stage: Stages, config: RunConfig, round_: int, pairs: str, policy: str) -> str:
    """Train on ``pairs`` from ``policy``, evaluate, and let the gate decide; return the new policy's artefact.

    Makes only what the loss reads.
    """
    made = [pairs]
    for name in ("calibration", "reference", "advantages"):
        if made_in(config, round_, name):
            made.append(stage(name, round_, *made))
    policy = stage.trained(round_, *made, policy)
    if made_in(config, round_, "average"):
        stage("average", round_, policy)
    measured = evaluated(stage, config, round_, policy)
    if made_in(config, round_, "gate"):
        stage("gate", round_, measured)
    return policy
