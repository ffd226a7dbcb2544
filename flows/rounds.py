"""What the flows share: how a run starts, and how a round learns from its pairs."""

from flows.tasks import Stages
from pipeline.config import RunConfig


def start(stage: Stages) -> tuple[str, str]:
    """Round 0: the data and the policy that training starts from, measured before any preference training."""
    data = stage("data", 0)
    policy = stage("policy", 0, data)
    stage("evaluation", 0, stage("evaluation_samples", 0, policy))
    return data, policy


def learn(stage: Stages, config: RunConfig, round_: int, pairs: str, policy: str) -> str:
    """Train on ``pairs`` from ``policy`` and evaluate; returns the new policy's artefact."""
    reference = stage("reference", round_, pairs)
    policy = stage("policy", round_, pairs, reference, policy)
    if config.training.reference == "ema":
        stage("average", round_, policy)
    stage("evaluation", round_, stage("evaluation_samples", round_, policy))
    return policy
