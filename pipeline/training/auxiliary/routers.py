"""Routers of a mixture of experts: the loss that balances them, and how much work each expert gets.

The loss is that of the Switch Transformer (arXiv:2101.03961, equations 4 to 6) as transformers computes it over all
layers at once: E · Σ_e f_e P_e, where f_e is how many of a token's k choices fall on expert e and P_e its probability
under the router, both means over tokens and layers; k if the experts are used alike. f_e is constant, so with those of
a whole global batch the gradient is a sum over tokens: micro-batches and processes do not change it. Where a batch is
cut, a pass without gradient counts f_e first. Padding and repeated fillers do not count; a prompt that is computed
once for m rows counts m times, as in plain rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder

from pipeline.models.attention.packing import Packed
from pipeline.models.output_head import text_decoder
from pipeline.models.weights.lora import plain_model
from pipeline.training.batches.collate import TokenBatch

# Names of the loss's coefficient, and of the number of experts for a token, in configs of transformers.
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
_CHOICES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k")


@dataclass(slots=True)
class Passed:
    """What the routers of one forward pass gave, by layer: logits [N, E], and the chosen experts [N, k]."""

    logits: dict[int, Tensor] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routed:
    """The routing of the N positions of a pass, each with its weight [N], over L layers.

    Attributes:
        logits: L times [N, E], with gradient.
        weights: [N] float32: in how many rows of examples the position's token stands.
        loads: [L, E] float64 on the CPU: choices of each expert, weighted.
        counts: [E + 1] float64 on the CPU: the choices that the loss counts, over all layers, and the weight of all
            tokens in all layers.
    """

    logits: tuple[Tensor, ...]
    weights: Tensor
    loads: Tensor
    counts: Tensor

    def balance(self, counts: Tensor) -> Tensor:
        """This pass's part of the balancing loss, with gradient; ``counts``: of the whole global batch."""
        *chosen, tokens = counts.tolist()
        shares = torch.tensor(chosen, device=self.weights.device) / tokens
        probabilities = [(one.float().softmax(-1) * self.weights.unsqueeze(1)).sum(0) for one in self.logits]
        found: Tensor = len(chosen) * (shares * torch.stack(probabilities).sum(0)).sum() / tokens
        return found


class Routers:
    """The routers of a model's text decoder; ``coefficient`` of their loss, 0: it is not trained."""

    def __init__(self, model: Any, coefficient: float | None = None) -> None:
        """Find the routers of ``model``; ``coefficient`` None: that of its config, 0 if that has none."""
        plain = plain_model(model)
        decoder, settings = text_decoder(plain), plain.config.get_text_config()
        self._modules = _routers(decoder)
        parts = [vars(settings), *(vars(part) for part in vars(settings).values() if hasattr(part, "to_dict"))]
        own = _first(parts, _COEFFICIENTS)
        self.coefficient = float((own or 0.0) if coefficient is None else coefficient)
        choices = _first(parts, _CHOICES) or 1
        self._choices = int(choices if isinstance(choices, int) else max(choices))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._modules)

    @property
    def trained(self) -> bool:
        """Whether their loss is trained."""
        return bool(self) and self.coefficient > 0

    @contextmanager
    def watched(self) -> Iterator[Passed]:
        """Collect the routing of the last forward pass inside."""
        passed = Passed()
        hooks = [
            module.register_forward_hook(self._collector(passed, layer, index))
            for layer, (module, index) in enumerate(self._modules)
        ]
        try:
            yield passed
        finally:
            for hook in hooks:
                hook.remove()

    def _collector(self, passed: Passed, layer: int, index: int) -> Any:
        def collect(_: nn.Module, __: Any, made: Any) -> None:
            logits = made if isinstance(made, Tensor) else made[index]
            logits = logits.flatten(0, -2)
            passed.logits[layer] = logits
            named = () if isinstance(made, Tensor) else made
            indices = (one for one in named if isinstance(one, Tensor) and not one.is_floating_point())
            chosen = [one for one in indices if one.shape == (len(logits), self._choices)]
            passed.chosen[layer] = chosen[0] if chosen else logits.topk(self._choices, dim=-1).indices

        return collect

    def routed(self, passed: Passed, batch: TokenBatch) -> Routed | None:
        """Weigh what ``passed`` for ``batch``; None without routers."""
        if not passed.logits:
            return None
        logits = tuple(passed.logits[layer] for layer in sorted(passed.logits))
        weights = position_weights(batch, len(logits[0]))
        experts = logits[0].shape[-1]
        chosen = [passed.chosen[layer] for layer in sorted(passed.chosen)]
        # The loss counts the experts of the largest probabilities; some routers choose by groups, or with a correction.
        preferred = [one.detach().float().topk(self._choices, dim=-1).indices for one in logits]
        loads, wanted = (_counted(each, weights, experts) for each in (chosen, preferred))
        tokens = loads.new_tensor([float(weights.sum()) * len(logits)])
        return Routed(logits, weights, loads, torch.cat([wanted.sum(0), tokens]))


def position_weights(batch: TokenBatch, positions: int) -> Tensor:
    """In how many rows of examples the token of each position of a pass over ``batch`` stands: [positions] float32."""
    rows = torch.zeros(len(batch.ids), device=batch.ids.device)
    for index in range(batch.blocks):
        rows[batch.block(index)] = 1.0
    if isinstance(batch.packed, Packed):
        found = _stream_weights(batch.packed, rows)
        return torch.cat([found, found.new_zeros(positions - len(found))])
    mask = batch.mask if batch.packed is None else batch.packed.mask
    places = torch.arange(mask.shape[1], device=mask.device)
    ends = torch.where(mask, places, 0).amax(1, keepdim=True)
    return ((places <= ends) * rows.unsqueeze(1)).flatten()


def _stream_weights(packed: Packed, rows: Tensor) -> Tensor:
    """[N] float32 from the weight [R] of each row; a prompt has that of all its rows."""
    trees = torch.arange(len(packed.lengths), device=rows.device)
    tree = torch.repeat_interleave(trees, packed.lengths)
    widest = int(packed.branch.max()) + 1
    place = tree * widest + packed.branch
    of_branch = torch.zeros(len(trees) * widest, device=rows.device).index_add_(0, place[packed.ends], rows)
    of_tree = of_branch.view(len(trees), widest).sum(1)
    return torch.where(packed.branch == 0, of_tree[tree], of_branch[place])


def _counted(chosen: Sequence[Tensor], weights: Tensor, experts: int) -> Tensor:
    """[L, E] float64 on the CPU: for each layer, the weight of the tokens that chose each expert."""
    found = weights.new_zeros((len(chosen), experts))
    for layer, indices in enumerate(chosen):
        found[layer].index_add_(0, indices.flatten(), weights.repeat_interleave(indices.shape[1]))
    return found.double().cpu()


def _routers(decoder: Any) -> tuple[tuple[nn.Module, int], ...]:
    """The modules of ``decoder`` whose outputs transformers records as router logits, with the place of these in them.

    They are named where a family's models are defined, which may be above or below the decoder.
    """
    recorders = [vars(kind).get("_can_record_outputs") or {} for kind in type(decoder).__mro__]
    given = next((one["router_logits"] for one in recorders if "router_logits" in one), ())
    wanted = [
        one if isinstance(one, OutputRecorder) else OutputRecorder(one)
        for one in (given if isinstance(given, list | tuple) else [given])
    ]
    return tuple(
        (module, one.index)
        for name, module in decoder.named_modules()
        for one in wanted
        if isinstance(module, one.target_class)
        and (one.layer_name is None or f".{one.layer_name.strip('.')}." in f".{name}.")
    )


def _first(parts: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    return next((part[name] for part in parts for name in names if part.get(name) is not None), None)


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """How a global batch used the experts.

    Attributes:
        router_aux_loss: the balancing loss, before its coefficient; None: it is not trained.
        expert_imbalance: the largest load of an expert, divided by the mean, in the layer where this is worst; 1: all
            alike.
        expert_shares: of all choices, over all layers, for each expert.
    """

    router_aux_loss: float | None
    expert_imbalance: float
    expert_shares: tuple[float, ...]


@dataclass(slots=True)
class RouterSums:
    """Sums over the passes of one process: the balancing loss, and the loads [L, E]."""

    loss: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    loads: Tensor | None = None
    trained: bool = False

    def add(self, routed: Routed | None, counts: Tensor | None, routers: Routers | None) -> Tensor | float:
        """Add a pass; return its part of the loss, with its coefficient; ``counts``: of the whole global batch."""
        if routed is None or routers is None:
            return 0.0
        self.loads = routed.loads if self.loads is None else self.loads + routed.loads
        self.trained = routers.trained and counts is not None
        if not routers.trained or counts is None:
            return 0.0
        loss = routed.balance(counts)
        self.loss += float(loss.detach())
        return loss * routers.coefficient

    def use(self, over_processes: Callable[[Tensor], Tensor]) -> ExpertUse | None:
        """What the sums of all processes come to; None without experts."""
        if self.loads is None:
            return None
        loss, loads = float(over_processes(self.loss)), over_processes(self.loads)
        shares = (loads.sum(0) / loads.sum()).tolist()
        worst = float((loads.amax(1) / loads.mean(1)).max())
        return ExpertUse(loss if self.trained else None, worst, tuple(round(share, 6) for share in shares))
