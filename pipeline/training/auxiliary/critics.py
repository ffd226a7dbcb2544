"""Two critics of hidden states that learn to tell the policy's responses from the reference's (GANPO, 2601.22083).

One critic reads chosen responses, the other rejected ones; a response that passes for the reference's has a higher
score. The policy's side of the game is a term of the loss (pipeline/losses/); the critics' side is here.

Departs from the published code:

* a critic reads and pools only the response, the states that its tokens are predicted from; theirs also pools the
  prompt and the padding;
* the critics learn after the policy's pass of a step, from the hidden states of that pass, not before it;
* no dropout and no learned positions (a decoder's hidden states encode them), so there is no maximum response length
  and the same states have the same score however a batch is cut;
* scores are compared with the running means from before the step, for the same reason.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.config.loss.terms import Adversary
from pipeline.models.output_head import response_places
from pipeline.models.token_logps import TokenFacts
from pipeline.training.batches.collate import TokenBatch

SIDES = ("policy", "chosen", "rejected")


class Critic(nn.Module):
    """A transformer encoder from the hidden states of a response to one score."""

    def __init__(self, width: int, settings: Adversary) -> None:
        """``width``: features of the input hidden states."""
        super().__init__()
        size = settings.hidden_size
        self.first = spectral_norm(_linear(width, size))
        self.blocks = nn.ModuleList(_block(size, settings.heads) for _ in range(settings.layers))
        self.pooled = spectral_norm(_linear(size, size))
        self.last = spectral_norm(_linear(size, 1))
        self.renormalise()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return scores [B] float32 from hidden states [B, T, H] at the tokens where ``mask`` [B, T] is true."""
        inside = mask.unsqueeze(-1)
        # Values outside the mask may be anything, and 0 times NaN is NaN.
        states = self.first(hidden.float().masked_fill(~inside, 0))
        for block in self.blocks:
            states = block(states, src_key_padding_mask=~mask)
        mean = states.masked_fill(~inside, 0).sum(1) / inside.sum(1)
        score: Tensor = self.last(gelu(self.pooled(mean)))
        return score.squeeze(-1)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Run one power iteration towards the weights' spectral norms.

        Once per step, not once per pass as by default: the number of passes must not change the result.
        """
        for layer in (self.first, self.pooled, self.last):
            layer.train()
            _ = layer.weight
            layer.eval()

    def train(self, mode: bool = True) -> "Critic":
        """Set the mode as for any module, but leave the spectral norms as they are."""
        super().train(mode)
        for layer in (self.first, self.pooled, self.last):
            layer.eval()
        return self


@dataclass(frozen=True, slots=True)
class PairStates:
    """Hidden states of B pairs under one model: [B, T, H] for each response, with masks [B, T] of its tokens."""

    chosen: Tensor
    chosen_mask: Tensor
    rejected: Tensor
    rejected_mask: Tensor

    def detached(self) -> "PairStates":
        """Return the same values without a gradient."""
        return PairStates(self.chosen.detach(), self.chosen_mask, self.rejected.detach(), self.rejected_mask)


@dataclass(frozen=True, slots=True)
class CriticScores:
    """Scores of one critic, each [B]: the policy's response of its side, the reference's chosen and rejected ones."""

    policy: Tensor
    chosen: Tensor
    rejected: Tensor

    def table(self) -> Tensor:
        """Return the scores [B, 3], detached, in the order of ``SIDES``."""
        return torch.stack([self.policy, self.chosen, self.rejected], dim=1).detach()


class Critics(nn.Module):
    """Both critics, and the running means of their scores: of the policy's responses and the reference's two."""

    means: Tensor

    def __init__(self, width: int, settings: Adversary, seed: int = 0) -> None:
        """``width``: features of the policy's and reference's hidden states; ``seed``: of the initial weights."""
        super().__init__()
        self.momentum = settings.momentum
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.of_chosen = Critic(width, settings)
            self.of_rejected = Critic(width, settings)
        # One row per critic, columns as SIDES; NaN until there is something to average.
        self.register_buffer("means", torch.full((2, len(SIDES)), torch.nan))

    @property
    def started(self) -> bool:
        """Whether there are running means."""
        return bool(self.means.isfinite().all())

    def policy_term(self, policy: PairStates) -> tuple[Tensor, Tensor]:
        """Return scores of the policy's chosen and rejected responses minus the reference's running means, each [B].

        The gradient reaches the hidden states, not the critics.
        """
        self.requires_grad_(False)
        try:
            chosen = self.of_chosen(policy.chosen, policy.chosen_mask) - self.means[0, 1]
            rejected = self.of_rejected(policy.rejected, policy.rejected_mask) - self.means[1, 2]
        finally:
            self.requires_grad_(True)
        return chosen, rejected

    def scores(self, policy: PairStates, reference: PairStates) -> tuple[CriticScores, CriticScores]:
        """Return the scores of the critics of chosen and of rejected responses; no gradient reaches the states."""
        ours, theirs = policy.detached(), reference.detached()
        return (
            CriticScores(self.of_chosen(ours.chosen, ours.chosen_mask), *_both(self.of_chosen, theirs)),
            CriticScores(self.of_rejected(ours.rejected, ours.rejected_mask), *_both(self.of_rejected, theirs)),
        )

    def loss(self, chosen: CriticScores, rejected: CriticScores) -> Tensor:
        """Return the critics' own loss of each pair, [B].

        Relativistic average: each kind of response is compared with the running mean of the next. On the chosen side,
        the reference's chosen response should score above the policy's, and the policy's above the reference's rejected
        one: ¼ [s(m_pol − C(ref⁺)) + s(C(pol) − m_ref⁺) + s(m_ref⁻ − C(pol)) + s(C(ref⁻) − m_pol)] with
        s(z) = log(1 + eᶻ). The rejected side swaps ref⁺ and ref⁻.
        """
        of_policy, of_chosen, of_rejected = self.means[0]
        first = _ranked(chosen.chosen, chosen.policy, chosen.rejected, of_chosen, of_policy, of_rejected)
        of_policy, of_chosen, of_rejected = self.means[1]
        return first + _ranked(rejected.rejected, rejected.policy, rejected.chosen, of_rejected, of_policy, of_chosen)

    @torch.no_grad()
    def update_means(self, batch_means: Tensor) -> None:
        """Move the running means towards a global batch's ``batch_means`` [2, 3]; the first replace them."""
        moved = self.momentum * self.means + (1 - self.momentum) * batch_means
        self.means.copy_(moved if self.started else batch_means)

    def renormalise(self) -> None:
        """Renormalise both critics; call this after each optimiser step."""
        self.of_chosen.renormalise()
        self.of_rejected.renormalise()


def _both(critic: Critic, states: PairStates) -> tuple[Tensor, Tensor]:
    return critic(states.chosen, states.chosen_mask), critic(states.rejected, states.rejected_mask)


def _ranked(
    best: Tensor, middle: Tensor, worst: Tensor, mean_best: Tensor, mean_middle: Tensor, mean_worst: Tensor
) -> Tensor:
    above = softplus(mean_middle - best) + softplus(middle - mean_best)
    below = softplus(mean_worst - middle) + softplus(worst - mean_middle)
    return (above + below) / 4


def _block(size: int, heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        size, heads, 4 * size, dropout=0.0, activation=gelu, batch_first=True, norm_first=True
    )


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def policy_states(facts: TokenFacts, batch: TokenBatch) -> PairStates:
    """Return the policy's last hidden states at the responses of a batch of pairs, with gradient."""
    assert facts.hidden is not None, "requested together with the critics"
    return _states(facts.hidden, batch)


def reference_states(facts: TokenFacts, batch: TokenBatch) -> PairStates:
    """Return the reference's last hidden states at the responses of a batch of pairs."""
    assert facts.reference_hidden is not None, "requested together with the critics"
    return _states(facts.reference_hidden[-1], batch)


def _states(hidden: Tensor, batch: TokenBatch) -> PairStates:
    """Split hidden states into the rows of chosen and rejected responses."""
    chosen, rejected = batch.block(0), batch.block(1)
    inside = response_places(batch.mask)
    return PairStates(hidden[chosen], inside[chosen], hidden[rejected], inside[rejected])
