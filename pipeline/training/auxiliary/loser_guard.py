"""A part of the rejected images' gradient: all of it would often raise the errors of the chosen ones too.

Fixed, or as much as leaves the chosen ones a share of their progress (Diffusion-SDPO, arXiv:2511.03317). There the
scale is found from the predictions; here from the gradients of the weights, those that the step takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config.images.scoring import SafeLoser, WeighedLoser
from pipeline.errors import UserError
from pipeline.images.draw_scores import DrawScores


@dataclass(slots=True)
class LoserGuard:
    """The guard of one training run.

    Attributes:
        settings: fixed weight, or a scale for each step.
        parameters: those that are trained.
        scale: of the last step.
    """

    settings: WeighedLoser | SafeLoser
    parameters: Sequence[nn.Parameter]
    scale: float = 1.0
    _losers: list[Tensor] = field(default_factory=list)

    def backward(self, loss: Tensor, scores: Tensor, rejected: slice) -> None:
        """Add the gradient of ``loss``, which reads ``scores`` [R, T]; that of the rows ``rejected`` by its part."""
        (slopes,) = torch.autograd.grad(loss, scores, retain_graph=True)
        losers = torch.zeros_like(slopes)
        losers[rejected] = slopes[rejected]
        winners = slopes - losers
        if isinstance(self.settings, WeighedLoser):
            self.scale = self.settings.weight
            torch.autograd.backward(scores, winners + self.scale * losers)
            return
        found = torch.autograd.grad(scores, self.parameters, losers, retain_graph=True)
        torch.autograd.backward(scores, winners)
        self._losers = [a + b for a, b in zip(self._losers, found, strict=True)] if self._losers else [*found]

    @torch.no_grad()
    def settle(self) -> None:
        """Add the losers' part of a whole step to its gradient."""
        if not isinstance(self.settings, SafeLoser) or not self._losers:
            return
        product, square = 0.0, 0.0
        for parameter, loser in zip(self.parameters, self._losers, strict=True):
            if parameter.grad is not None:
                product += float((parameter.grad.double() * loser.double()).sum())
                square += float(parameter.grad.double().square().sum())
        # The loser's error is raised: where its gradient opposes the winner's, both errors would rise.
        self.scale = min(1.0, (1 - self.settings.mu) * square / -product) if product < 0 else 1.0
        for parameter, loser in zip(self.parameters, self._losers, strict=True):
            part = self.scale * loser
            parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)
        self._losers = []


def guard_of(facts: nn.Module, accelerator: Accelerator) -> LoserGuard | None:
    """Return the guard that ``facts`` ask for; None without.

    Raises:
        UserError: a scale for each step, in several processes.
    """
    if not isinstance(facts, DrawScores) or facts.settings.loser is None:
        return None
    if isinstance(facts.settings.loser, SafeLoser) and accelerator.num_processes > 1:
        raise UserError(
            f"training.score.loser.kind: safe, in {accelerator.num_processes} processes, each of which knows its own "
            "gradient alone; allowed: weight, or one process"
        )
    return LoserGuard(facts.settings.loser, [p for p in facts.model.parameters() if p.requires_grad])
