"""A policy's own implicit reward (DPO, arXiv:2305.18290, equation 5): r(x, y) = β log π(y | x) / π_ref(y | x)."""

from collections.abc import Sequence
from typing import Literal

from pipeline.types import Group


class ImplicitReward:
    """Scores the tokens that were sampled, in nats times β; the partition function of a prompt is left out."""

    def __init__(
        self, policy: str, reference: str, beta: float, dtype: Literal["float32", "bfloat16"], trust_remote_code: bool
    ) -> None:
        """Nothing is loaded until it scores; one model at a time is in memory."""
        self._models = (policy, reference)
        self._beta = beta
        self._dtype: Literal["float32", "bfloat16"] = dtype
        self._trust_remote_code = trust_remote_code

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """One score a response; groups have the same scores whatever stands beside them."""
        sequences = [(group.prompt_ids, response.token_ids) for group in groups for response in group.responses]
        policy, reference = (self._sums(model, sequences) for model in self._models)
        rewards = iter([self._beta * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)])
        return [tuple(next(rewards) for _ in group.responses) for group in groups]

    def _sums(self, path: str, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        from pipeline.models.policy import load_for_scoring
        from pipeline.training.reference import response_logps

        model = load_for_scoring(path, trust_remote_code=self._trust_remote_code)
        return [sum(logps) for logps in response_logps(model, sequences, dtype=self._dtype)]
