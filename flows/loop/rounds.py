"""What the flows share: how a run starts, and how a round learns from its pairs."""

from flows.run_folder.growth import ADDED, brings_prompts
from flows.tasks import Stages
from pipeline.config import RunConfig
from pipeline.config.loss.supply import buys, samples_calibration, stores_reference
from pipeline.storage.run_folder import RunFolder


def start(stage: Stages) -> tuple[str, str]:
    """Round 0: the data and the policy that training starts from, measured before any preference training."""
    data = stage("data", 0)
    policy = stage("policy", 0, data)
    stage("evaluation", 0, stage("evaluation_samples", 0, policy))
    return data, policy


def added(stage: Stages, run: RunFolder, config: RunConfig, round_: int) -> list[str]:
    """Take up what the source of prompts has gained since the round before; the artefact, if there is one."""
    return [stage(ADDED, round_)] if brings_prompts(run, config, round_) else []


def labelled(stage: Stages, config: RunConfig, round_: int, samples: str) -> str:
    """Label ``samples``, with a discriminator after gold is bought and it is refitted; returns the labels' artefact."""
    made, settings = [samples], config.discriminator
    if settings is not None and buys(settings, round_):
        made.append(stage("gold", round_, samples))
        if settings.trains:
            made.append(stage("discriminator", round_, made[-1]))
    return stage("labels", round_, *made)


def learn(stage: Stages, config: RunConfig, round_: int, pairs: str, policy: str) -> str:
    """Train on ``pairs`` from ``policy``, evaluate, and let the gate decide; returns the new policy's artefact.

    What the loss does not read is not made.
    """
    made = [pairs]
    if samples_calibration(config.loss):
        made.append(stage("calibration", round_, pairs))
    if stores_reference(config.loss):
        made.append(stage("reference", round_, *made))
    policy = stage("policy", round_, *made, policy)
    if config.training.reference == "ema":
        stage("average", round_, policy)
    evaluated = stage("evaluation", round_, stage("evaluation_samples", round_, policy))
    if config.gate is not None:
        stage("gate", round_, evaluated)
    return policy
