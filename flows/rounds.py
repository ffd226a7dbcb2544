"""What the flows share: how a run starts, and how a round learns from its pairs."""

from flows.supply import samples_calibration, stores_reference
from flows.tasks import Stages
from pipeline.config import RunConfig


def start(stage: Stages) -> tuple[str, str]:
    """Round 0: the data and the policy that training starts from, measured before any preference training."""
    data = stage("data", 0)
    policy = stage("policy", 0, data)
    stage("evaluation", 0, stage("evaluation_samples", 0, policy))
    return data, policy


def learn(stage: Stages, config: RunConfig, round_: int, pairs: str, policy: str) -> str:
    """Train on ``pairs`` from ``policy`` and evaluate; returns the new policy's artefact.

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
    stage("evaluation", round_, stage("evaluation_samples", round_, policy))
    return policy
