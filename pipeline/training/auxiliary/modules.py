"""What a loss trains beside the policy: heads on hidden states, and critics of them.

They are no part of the policy and of what is published of it. Every process holds all of them, and their gradients
are averaged here, since whatever wraps the policy for several processes does not see them.
"""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import Composition, Optimisation
from pipeline.config.loss.components import ActivationWeights, LearnedPrior, LearnedWeights
from pipeline.errors import UserError
from pipeline.losses import GroupBatch, PairBatch, UnpairedBatch
from pipeline.models.token_logps import TokenFacts, at_tokens, response_places
from pipeline.training.auxiliary.critics import Critics, PairStates
from pipeline.training.auxiliary.heads import MaskHead, PriorHead, ValueHead, activation_mask
from pipeline.training.batches.collate import Batch
from pipeline.training.optimiser import Group
from pipeline.types import derive_seed

FILE = "heads.safetensors"
# Of their names among the parameters of a run, so that they cannot be taken for the policy's.
PREFIX = "heads."


class Companions(nn.Module):
    """The heads and critics that a loss declares; those it does not are None."""

    def __init__(self, loss: Composition, width: int, layers: int, reference_width: int, seed: int) -> None:
        """New ones.

        Args:
            loss: declares which.
            width: features of the policy's hidden states.
            layers, reference_width: hidden states a token of the reference model, and their features.
            seed: of the first weights.

        Raises:
            UserError: critics are to compare hidden states of different widths.
        """
        super().__init__()
        self.loss = loss
        self.mask = self.kl_mask = None
        if isinstance(loss.weights, LearnedWeights):
            self.mask = MaskHead(layers, reference_width, loss.weights.dropout)
            if loss.weights.masks == "independent":
                self.kl_mask = MaskHead(layers, reference_width, loss.weights.dropout)
        learned = isinstance(loss.prior, LearnedPrior)
        self.prior = PriorHead(layers, reference_width, derive_seed(seed, "prior head")) if learned else None
        self.value = None if loss.advantage is None else ValueHead(width)
        if loss.adversary is not None and width != reference_width:
            raise UserError(
                f"loss.adversary: compares hidden states of the policy, {width} wide, with the reference's, "
                f"{reference_width} wide; both models must be of one width"
            )
        self.critics = None if loss.adversary is None else Critics(width, loss.adversary, derive_seed(seed, "critics"))

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters, under names that no policy has."""
        return {PREFIX + name: p for name, p in self.named_parameters()}

    def named_constants(self) -> dict[str, Tensor]:
        """What changes without a gradient, under names that no policy has: spectral norms, running means."""
        return {PREFIX + name: b for name, b in self.named_buffers()}

    def groups(self, settings: Optimisation) -> list[Group]:
        """For the optimiser; ``settings``: the run's rate, and the weight decay of what has none of its own."""
        groups: list[Group] = []
        for name, module in self.named_children():
            own = {f"{PREFIX}{name}.{inner}": p for inner, p in module.named_parameters()}
            decay, rate = settings.weight_decay, 1.0
            if isinstance(module, MaskHead) and isinstance(self.loss.weights, LearnedWeights):
                decay = self.loss.weights.weight_decay
                rate = self.loss.weights.head_learning_rate / settings.learning_rate
            if isinstance(module, PriorHead) and isinstance(self.loss.prior, LearnedPrior):
                rate = self.loss.prior.head_learning_rate / settings.learning_rate
            if isinstance(module, ValueHead) and self.loss.advantage is not None:
                rate = self.loss.advantage.head_learning_rate / settings.learning_rate
            if isinstance(module, Critics) and self.loss.adversary is not None:
                rate = self.loss.adversary.learning_rate_ratio
            groups.append(Group(own, decay, rate))
        return groups

    def token_facts(self, facts: TokenFacts, mask: Tensor) -> TokenFacts:
        """``facts`` of rows with response tokens ``mask`` [R, T], filled up with what the heads say of each token."""
        hidden = facts.reference_hidden
        if hidden is None:
            return facts
        found = {"weights": self.mask, "kl_weights": self.kl_mask, "prior": self.prior}
        said = {name: at_tokens(head(hidden), mask) for name, head in found.items() if head is not None}
        if isinstance(self.loss.weights, ActivationWeights):
            said["weights"] = at_tokens(activation_mask(hidden, response_places(mask)), mask)
        return replace(facts, weights=said.get("weights"), kl_weights=said.get("kl_weights"), prior=said.get("prior"))

    def pair_facts(
        self, found: PairBatch | UnpairedBatch | GroupBatch, facts: TokenFacts, batch: Batch
    ) -> PairBatch | UnpairedBatch | GroupBatch:
        """``found``, filled up with what value head and critics say of each pair."""
        if not isinstance(found, PairBatch) or facts.hidden is None:
            return found
        if self.value is not None:
            # The first token of the response is predicted from the state at the prompt's last.
            found = replace(found, value=self.value(facts.hidden[batch.block(0), 0]))
        if self.critics is not None:
            chosen, rejected = self.critics.policy_term(policy_states(facts, batch))
            found = replace(found, critic_chosen=chosen, critic_rejected=rejected)
        return found

    def after_step(self, critic_means: Tensor | None) -> None:
        """What follows a step of the optimiser; ``critic_means`` [2, 3]: the critics' mean scores in it."""
        if self.critics is not None and critic_means is not None:
            self.critics.update_means(critic_means)
            self.critics.renormalise()

    def average_gradients(self, accelerator: Accelerator) -> None:
        """Make the gradient the mean over all processes, as a data-parallel wrapper does with the policy's."""
        if accelerator.num_processes == 1:
            return
        for parameter in self.parameters():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(own, reduction="mean")

    def save(self, folder: Path) -> None:
        """Write them to ``folder``, for the next round; nothing where there are none."""
        tensors = {name: t.detach().contiguous().cpu() for name, t in self.state_dict().items()}
        if tensors:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Go on with those in ``folder``; nothing where there are none to load.

        Raises:
            UserError: they cannot be read, or are of another loss or model.
        """
        own = self.state_dict()
        if not own:
            return
        try:
            tensors = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / FILE}: cannot read these heads: {error}") from None
        differing = [name for name, t in own.items() if name not in tensors or tensors[name].shape != t.shape]
        if differing or len(tensors) != len(own):
            unknown = differing or sorted(set(tensors) - set(own))
            raise UserError(f"{folder / FILE}: heads of another loss or model ({unknown[0]} does not fit)")
        self.load_state_dict(tensors)


def policy_states(facts: TokenFacts, batch: Batch) -> PairStates:
    """The policy's last hidden states at the responses of a batch of pairs, with gradient."""
    assert facts.hidden is not None, "asked for with the critics"
    return _states(facts.hidden, batch)


def reference_states(facts: TokenFacts, batch: Batch) -> PairStates:
    """The reference's."""
    assert facts.reference_hidden is not None, "asked for with the critics"
    return _states(facts.reference_hidden[-1], batch)


def _states(hidden: Tensor, batch: Batch) -> PairStates:
    """Cut at the rows of chosen and rejected responses."""
    chosen, rejected = batch.block(0), batch.block(1)
    inside = response_places(batch.mask)
    return PairStates(hidden[chosen], inside[chosen], hidden[rejected], inside[rejected])
