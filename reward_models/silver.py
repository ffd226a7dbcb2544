"""A policy's own implicit reward (DPO, arXiv:2305.18290, equation 5): r(x, y) = β log π(y | x) / π_ref(y | x)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.config import ClassifierScorer
from pipeline.models.rendering.template import Rendering
from pipeline.models.weights.weight_format import FLOAT32, WeightFormat
from pipeline.types import Group


class ImplicitReward:
    """Score the sampled tokens, in nats times β; the prompt's partition function is left out."""

    def __init__(
        self,
        policy: str,
        reference: str,
        beta: float,
        dtype: Literal["float32", "bfloat16"],
        trust_remote_code: bool,
        held: WeightFormat = FLOAT32,
    ) -> None:
        """Load nothing before the first score; hold one model in memory at a time, as ``held`` says."""
        self._held = held
        self._models = (policy, reference)
        self._beta = beta
        self._dtype: Literal["float32", "bfloat16"] = dtype
        self._trust_remote_code = trust_remote_code

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return one score per response; a group's scores do not depend on the other groups."""
        sequences = [(group.prompt_ids, response.token_ids) for group in groups for response in group.responses]
        policy, reference = (self._sums(model, sequences) for model in self._models)
        rewards = iter([self._beta * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)])
        return [tuple(next(rewards) for _ in group.responses) for group in groups]

    def _sums(self, path: str, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        from pipeline.models.policy import load_for_scoring
        from pipeline.training.reference import response_logps

        model = load_for_scoring(path, self._held, trust_remote_code=self._trust_remote_code)
        return [sum(logps) for logps in response_logps(model, sequences, dtype=self._dtype)]


class Members:
    """The discriminators of one version; a response's score is their mean score."""

    def __init__(self, folders: Sequence[Path], rendering: Rendering | None = None) -> None:
        """``rendering``: of the policy, for members with its chat template."""
        from reward_models.local.classifier import ClassifierReward

        self._members = [ClassifierReward(ClassifierScorer(path=str(folder)), rendering) for folder in folders]

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return the members' mean scores."""
        of_members = [member.score(groups) for member in self._members]
        return [
            tuple(_mean(scores) for scores in zip(*of_group, strict=True)) for of_group in zip(*of_members, strict=True)
        ]

    def margins(self, comparisons: Sequence[Group]) -> list[tuple[float, ...]]:
        """Return, for each comparison, the first response's score minus the second's under each member."""
        of_members = [member.score(comparisons) for member in self._members]
        return [
            tuple((first or 0.0) - (second or 0.0) for first, second in of_comparison)
            for of_comparison in zip(*of_members, strict=True)
        ]


def _mean(scores: Sequence[float | None]) -> float:
    # A classifier scores every response.
    return sum(score or 0.0 for score in scores) / len(scores)
