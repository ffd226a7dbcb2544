"""Modules that a loss trains together with the policy: heads on hidden states, and critics of them.

They are not part of the policy, nor of its published form. Their gradients are averaged here, because the wrapper that
trains the policy in several processes does not see them. Where it shards the policy (FSDP2), they are sharded too: each
process holds slices of them, with the optimiser's state for these, and all of them only while a gradient is computed.

The training loop uses four things: their values for each token and pair (``token_facts``, ``pair_facts``), their
statistics of the whole batch before the pass with gradient (``observe``, ``begin``), their own loss
(``extra_loss``), and their update after a step (``after_step``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from pipeline.config import Formula, Optimisation
from pipeline.config.loss.components import ActivationWeights, LearnedPrior, LearnedWeights
from pipeline.config.loss.needs import OF_REFERENCE, needs_of
from pipeline.config.loss.terms import Advantage, TokenAdvantageHead
from pipeline.errors import UserError
from pipeline.losses import GroupBatch, Loss, PairBatch, UnpairedBatch
from pipeline.models.output_head import at_tokens, response_places
from pipeline.models.token_logps import TokenFacts
from pipeline.models.weights.lora import plain_model
from pipeline.training.auxiliary.critics import SIDES, Critics, policy_states, reference_states
from pipeline.training.auxiliary.heads import HEADS_FILE, MaskHead, PriorHead, ValueHead, activation_mask
from pipeline.training.batches.collate import TokenBatch
from pipeline.training.optimiser import ParameterGroup
from pipeline.types import derive_seed

# Prefix of their names among a run's parameters, so that they cannot be mistaken for the policy's.
PREFIX = "heads."


def live_reference(model: Any, given: Any | None, loss: Loss) -> Any | None:
    """Return the model for reference values beyond stored log-probabilities; None if the loss needs no such values.

    Raises ``UserError`` if the loss needs one, ``given`` is None and ``model`` has no adapter to switch off.
    """
    wanted = loss.needs.token_facts & OF_REFERENCE
    if not wanted:
        return None
    if given is not None:
        return given
    if plain_model(model) is model:
        raise UserError(
            f"training: loss {loss.name} reads more of the reference model than its log-probabilities "
            f"({', '.join(sorted(wanted))}); without an adapter to switch off, a reference model must be given"
        )
    return model


@dataclass(frozen=True, slots=True)
class ExtraLoss:
    """The modules' own loss on a micro-batch of B examples.

    Attributes:
        per_example: [B], with gradient for the modules only.
        sums: over the B examples, for ``after_step``; float64 on the CPU.
    """

    per_example: Tensor
    sums: Tensor


class AuxiliaryModules(nn.Module):
    """The heads and critics that a loss declares; the others are None."""

    def __init__(self, loss: Formula, width: int, layers: int, reference_width: int, seed: int) -> None:
        """Create new modules.

        Args:
            loss: declares the modules.
            width: features of the policy's hidden states.
            layers, reference_width: the reference model's hidden states per token, and their features.
            seed: of the initial weights.

        Raises:
            UserError: critics would compare hidden states of different widths.
        """
        super().__init__()
        loss = self.loss = loss.inputs
        self._slices: dict[str, nn.Parameter] = {}
        self.mask = self.kl_mask = None
        if isinstance(loss.weights, LearnedWeights):
            self.mask = MaskHead(layers, reference_width, loss.weights.dropout)
            if loss.weights.masks == "independent":
                self.kl_mask = MaskHead(layers, reference_width, loss.weights.dropout)
        learned = isinstance(loss.prior, LearnedPrior)
        self.prior = PriorHead(layers, reference_width, derive_seed(seed, "prior head")) if learned else None
        self.value = None if loss.advantage is None else ValueHead(width)
        self.token_value = ValueHead(width) if isinstance(loss.head, TokenAdvantageHead) else None
        if loss.adversary is not None and width != reference_width:
            raise UserError(
                f"loss.adversary: compares hidden states of the policy, {width} wide, with the reference's, "
                f"{reference_width} wide; both models must have the same width"
            )
        self.critics = None if loss.adversary is None else Critics(width, loss.adversary, derive_seed(seed, "critics"))

    def shard(self, mesh: DeviceMesh) -> None:
        """Keep slices of all parameters, which are trained in their place; between uses, the parameters are empty."""
        self._slices = {
            name: nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None))
            for name, p in self.named_parameters()
        }
        self.release()

    def gather(self) -> None:
        """Fill the parameters from all processes' slices, if there are any. Every process must call this."""
        for name, parameter in self.named_parameters():
            if name in self._slices:
                whole: Any = self._slices[name].detach()
                parameter.data = whole.full_tensor()

    def release(self) -> None:
        """Free what ``gather`` has filled."""
        for name, parameter in self.named_parameters():
            if name in self._slices:
                parameter.data = parameter.data.new_empty(0)

    def named(self) -> dict[str, nn.Parameter]:
        """Return what is trained, all parameters or this process's slices, under names that no policy has."""
        return {PREFIX + name: self._slices.get(name, p) for name, p in self.named_parameters()}

    def named_constants(self) -> dict[str, Tensor]:
        """Return spectral norms and running means, which change without a gradient, under names that no policy has."""
        return {PREFIX + name: b for name, b in self.named_buffers()}

    def groups(self, settings: Optimisation) -> list[ParameterGroup]:
        """Return the optimiser's groups; ``settings`` gives the run's rate, and the default weight decay."""
        groups: list[ParameterGroup] = []
        for name, module in self.named_children():
            own = {key: p for key, p in self.named().items() if key.startswith(f"{PREFIX}{name}.")}
            decay, rate = settings.weight_decay, 1.0
            if isinstance(module, MaskHead) and isinstance(self.loss.weights, LearnedWeights):
                decay = self.loss.weights.weight_decay
                rate = self.loss.weights.head_learning_rate / settings.learning_rate
            if isinstance(module, PriorHead) and isinstance(self.loss.prior, LearnedPrior):
                rate = self.loss.prior.head_learning_rate / settings.learning_rate
            fitted = self.loss.advantage if module is self.value else self.loss.head
            if isinstance(module, ValueHead) and isinstance(fitted, Advantage | TokenAdvantageHead):
                rate = fitted.head_learning_rate / settings.learning_rate
            if isinstance(module, Critics) and self.loss.adversary is not None:
                rate = self.loss.adversary.learning_rate_ratio
            groups.append(ParameterGroup(own, decay, rate))
        return groups

    def token_facts(self, facts: TokenFacts, mask: Tensor) -> TokenFacts:
        """Return ``facts`` of rows with response tokens ``mask`` [R, T], plus the heads' values for each token."""
        if self.token_value is not None and facts.hidden is not None:
            facts = replace(facts, token_value=at_tokens(self.token_value(facts.hidden), mask))
        hidden = facts.reference_hidden
        if hidden is None:
            return facts
        found = {"weights": self.mask, "kl_weights": self.kl_mask, "prior": self.prior}
        said = {name: at_tokens(head(hidden), mask) for name, head in found.items() if head is not None}
        if isinstance(self.loss.weights, ActivationWeights):
            said["weights"] = at_tokens(activation_mask(hidden, response_places(mask)), mask)
        return replace(facts, weights=said.get("weights"), kl_weights=said.get("kl_weights"), prior=said.get("prior"))

    def pair_facts(
        self, found: PairBatch | UnpairedBatch | GroupBatch, facts: TokenFacts, batch: TokenBatch
    ) -> PairBatch | UnpairedBatch | GroupBatch:
        """Return ``found`` with the value head's and critics' values for each pair added."""
        if not isinstance(found, PairBatch) or facts.hidden is None:
            return found
        if self.value is not None:
            # The first response token is predicted from the state at the prompt's last token.
            found = replace(found, value=self.value(facts.hidden[batch.block(0), 0]))
        if self.critics is not None:
            chosen, rejected = self.critics.policy_term(policy_states(facts, batch))
            found = replace(found, critic_chosen=chosen, critic_rejected=rejected)
        return found

    @property
    def waits(self) -> bool:
        """Whether they must ``observe`` the whole batch before its pass with gradient: critics still without means."""
        return self.critics is not None and not self.critics.started

    def observe(self, facts: TokenFacts, batch: TokenBatch) -> Tensor | None:
        """Return rows of one micro-batch for ``begin``, on the CPU; None if they do not wait."""
        if self.critics is None or self.critics.started:
            return None
        found = self.critics.scores(policy_states(facts, batch), reference_states(facts, batch))
        return torch.stack([of_critic.table() for of_critic in found]).cpu()

    def begin(self, observed: Sequence[Tensor]) -> None:
        """Start from what all processes ``observed`` in one global batch."""
        if self.critics is not None and observed:
            self.critics.update_means(torch.cat([*observed], dim=1).mean(1).to(self.critics.means.device))

    def extra_loss(self, facts: TokenFacts, batch: TokenBatch) -> ExtraLoss | None:
        """Return their own loss on a micro-batch, with no gradient to the policy; None if they have no such loss."""
        if self.critics is None:
            return None
        scores = self.critics.scores(policy_states(facts, batch), reference_states(facts, batch))
        sums = torch.stack([of_critic.table().sum(0) for of_critic in scores]).double().cpu()
        return ExtraLoss(self.critics.loss(*scores), sums)

    def nothing_summed(self) -> Tensor | None:
        """Return zeros in the shape of ``ExtraLoss.sums``; None if they have no loss of their own."""
        return None if self.critics is None else torch.zeros(2, len(SIDES), dtype=torch.float64)

    def after_step(self, means: Tensor | None) -> None:
        """Update after an optimiser step; ``means``: of ``ExtraLoss.sums`` over the examples of its global batch."""
        if self.critics is not None and means is not None:
            self.gather()
            self.critics.update_means(means.to(self.critics.means))
            self.critics.renormalise()
            self.release()

    def average_gradients(self, accelerator: Accelerator, context: int = 1) -> None:
        """Average the gradient over all processes, as a data-parallel wrapper does with the policy's; ``release``."""
        if accelerator.num_processes == 1 and not self._slices:
            return
        for name, parameter in self.named_parameters():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            # Processes of one context each have the whole gradient of the rows that they share.
            mean = accelerator.reduce(own, reduction="mean") / context
            slices: Any = self._slices.get(name)
            if slices is None:
                parameter.grad = mean
            else:
                place = slices.device_mesh, slices.placements
                slices.grad, parameter.grad = distribute_tensor(mean, *place, src_data_rank=None), None
        self.release()

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write the modules to ``folder`` for the next round; do nothing if there are no modules.

        Every process must call this; ``writes``: whether this one writes.
        """
        self.gather()
        tensors = {name: t.detach().contiguous().cpu() for name, t in self.state_dict().items()}
        self.release()
        if tensors and writes:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / HEADS_FILE)

    def load(self, folder: Path) -> None:
        """Load the modules in ``folder``; do nothing if the loss has no modules.

        Raises:
            UserError: they cannot be read, or belong to another loss or model.
        """
        self.gather()
        own = self.state_dict()
        if not own:
            return
        try:
            tensors = load_file(folder / HEADS_FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / HEADS_FILE}: cannot read these heads: {error}") from None
        differing = [name for name, t in own.items() if name not in tensors or tensors[name].shape != t.shape]
        if differing or len(tensors) != len(own):
            unknown = differing or sorted(set(tensors) - set(own))
            raise UserError(f"{folder / HEADS_FILE}: heads of another loss or model ({unknown[0]} does not fit)")
        self.load_state_dict(tensors)
        for name, parameter in self._slices.items():
            mine: Any = parameter
            whole = tensors[name].to(mine.device)
            mine.data.copy_(distribute_tensor(whole, mine.device_mesh, mine.placements, src_data_rank=None))
        self.release()


def modules_for(model: Any, reference: Any | None, loss: Formula, seed: int) -> AuxiliaryModules:
    """Create the modules of ``loss``, in training mode, for a policy and the reference whose states they read.

    ``reference`` None: use the policy's sizes instead.
    """
    if not needs_of(loss).auxiliary:
        # Of nothing that is made.
        return AuxiliaryModules(loss, 0, 0, 0, seed).train()
    own = plain_model(model).config.get_text_config()
    other = own if reference is None else plain_model(reference).config.get_text_config()
    return AuxiliaryModules(loss, own.hidden_size, other.num_hidden_layers, other.hidden_size, seed).train()
