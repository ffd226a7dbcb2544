"""Loss and gradient of one global batch, whatever it is cut into."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pipeline.losses import Loss
from pipeline.models.token_logps import TokenFacts
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.collate import TokenBatch
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.distributed.zero import ZeroEngine

METRICS = (
    "margin",
    "accuracy",
    "chosen_logp_per_token",
    "rejected_logp_per_token",
    "chosen_change_per_token",
    "rejected_change_per_token",
)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a gradient is taken of.

    Attributes:
        policy: a ``TokenLogps``, or what accelerate or DeepSpeed made of one.
        loss: unreduced.
        modules: what the loss trains together with the policy.
        accelerator: gives rank, device and the backward pass.
    """

    policy: nn.Module
    loss: Loss
    modules: AuxiliaryModules
    accelerator: Accelerator

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, which the policy has a part in."""
        if isinstance(self.policy, ZeroEngine):
            self.policy.backward(loss)
        else:
            self.accelerator.backward(loss)


@dataclass(frozen=True, slots=True)
class Lots:
    """What lots are drawn by, beside the example: the run's seed, and the epoch, from 0."""

    seed: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What one global batch gave, over all processes.

    Attributes:
        loss: mean over its examples; may be infinite or NaN.
        metrics: means over its examples, those of ``METRICS`` that the loss reports.
        tokens, response_tokens, positions: counts, padding only in the last.
        suspects: ids of this process's examples whose loss is not finite, or of those that spoil the others'.
        running: the loss's running statistics after it.
        module_means: means over its examples that the auxiliary modules ask for; None where they ask for none.
    """

    loss: float
    metrics: dict[str, float]
    tokens: int
    response_tokens: int
    positions: int
    suspects: tuple[str, ...]
    running: Mapping[str, float] = field(default_factory=dict)
    module_means: Tensor | None = None


def accumulate_gradient(
    objective: Objective,
    examples: Sequence[Example],
    cut: Cut,
    lots: Lots | None = None,
    running: Mapping[str, float] | None = None,
) -> BatchFacts:
    """Add the gradient of (1/B) Σ_i L_i to what is trained, B the examples of all processes.

    Losses that read statistics over the batch get those of the whole of it: where it is cut, a pass without gradient
    collects them first, with the same dropout.

    Args:
        objective: see there.
        examples: the global batch; each process works on its share.
        cut: into forward passes.
        lots: of this step.
        running: the loss's running statistics so far.
    """
    lots, accelerator = lots or Lots(), objective.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    own = micro_batches(examples, cut, rank, world, needs=objective.loss.needs, seed=lots.seed, epoch=lots.epoch)
    batches = [batch.to(accelerator.device) for batch in own]
    whole = len(batches) == 1 and world == 1
    shared = None if whole else _look_ahead(objective, batches, running or {})
    total = _Total(objective.modules.nothing_summed())
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        sync: AbstractContextManager[None] = nullcontext() if last else accelerator.no_sync(objective.policy)
        with sync:
            facts = _facts(objective, batch)
            if whole:
                shared = _statistics(objective, [_observe(objective, batch, facts)], running or {})
            assert shared is not None, "of the whole batch, or of the passes before"
            _backward(objective, batch, facts, shared, len(examples), total)
    objective.modules.average_gradients(accelerator)
    assert shared is not None, "every process makes at least one pass"
    return _over_all(total, objective, len(examples), shared)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The loss's statistics for a global batch, its running ones after it, and whose share in them is not finite."""

    statistics: Mapping[str, float]
    running: Mapping[str, float]
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Observed:
    """What one micro-batch adds to the statistics of its global batch.

    Attributes:
        loss: name -> n numbers.
        modules: rows that the auxiliary modules asked for.
        suspects: ids of examples whose numbers are not finite, which makes the loss of all others NaN, too.
    """

    loss: Mapping[str, Sequence[float]]
    modules: Tensor | None
    suspects: tuple[str, ...]


@dataclass(slots=True)
class _Total:
    """Sums over this process's micro-batches; ``modules``: those of ``ExtraLoss``."""

    modules: Tensor | None
    sums: Tensor = field(default_factory=lambda: torch.zeros(4 + len(METRICS), dtype=torch.float64))
    reported: frozenset[str] = frozenset()
    suspects: list[str] = field(default_factory=list)


def _facts(objective: Objective, batch: TokenBatch) -> TokenFacts:
    facts: TokenFacts = objective.policy(batch.ids, batch.mask, batch.packed)
    return objective.modules.token_facts(facts, batch.mask)


def _look_ahead(objective: Objective, batches: Sequence[TokenBatch], running: Mapping[str, float]) -> _Shared:
    """Statistics of the global batch, by a pass without gradient where any are read."""
    if not objective.loss.needs.statistics and not objective.modules.waits:
        return _Shared({}, dict(running))
    device = objective.accelerator.device
    # The lots of dropout must fall as they will in the pass with gradient.
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        seen = [_observe(objective, batch, _facts(objective, batch)) for batch in batches]
    return _statistics(objective, seen, running)


@torch.no_grad()
def _observe(objective: Objective, batch: TokenBatch, facts: TokenFacts) -> _Observed:
    if not batch.examples:
        return _Observed({}, None, ())
    of_modules = objective.modules.observe(facts, batch)
    # The terms of auxiliary modules are left out: no statistic is made of them.
    values = {name: v.double().tolist() for name, v in objective.loss.observe(batch.loss_batch(facts)).items()}
    rows = zip(*values.values(), strict=True) if values else ()
    finite = [all(map(math.isfinite, row)) for row in rows]
    return _Observed(
        values, of_modules, tuple(e.id for e, fine in zip(batch.examples, finite, strict=False) if not fine)
    )


def _statistics(objective: Objective, seen: Sequence[_Observed], running: Mapping[str, float]) -> _Shared:
    """Of what all processes have ``seen``; hands the auxiliary modules their part of it."""
    every = gather_object(list(seen)) if objective.accelerator.num_processes > 1 else seen
    objective.modules.begin([one.modules for one in every if one.modules is not None])
    suspects = tuple(id for one in every for id in one.suspects)
    if not objective.loss.needs.statistics:
        return _Shared({}, dict(running), suspects)
    names = sorted({name for one in every for name in one.loss})
    joined = {
        name: torch.tensor([x for one in every for x in one.loss.get(name, ())], dtype=torch.float64) for name in names
    }
    statistics, after = objective.loss.summarise(joined, running)
    return _Shared(statistics, after, suspects)


def _backward(
    objective: Objective, batch: TokenBatch, facts: TokenFacts, shared: _Shared, size: int, total: _Total
) -> None:
    """The gradient of one micro-batch of a global batch of ``size`` examples; adds to ``total``."""
    accelerator, modules = objective.accelerator, objective.modules
    if not batch.examples:
        objective.backward(facts.policy.sum() * 0)
        return
    # Data-parallel wrappers average gradients over processes, so each contributes its share times their number.
    scale = accelerator.num_processes / size
    found = modules.pair_facts(batch.loss_batch(facts), facts, batch)
    output = objective.loss(found, shared.statistics)
    objective.backward(output.per_pair.sum() * scale)
    extra = modules.extra_loss(facts, batch)
    if extra is not None:
        accelerator.backward(extra.per_example.sum() * scale)
        total.modules = extra.sums if total.modules is None else total.modules + extra.sums
    per_pair = output.per_pair.detach()
    total.reported = frozenset(output.metrics) & frozenset(METRICS)
    means = [float(output.metrics[name]) if name in total.reported else 0.0 for name in METRICS]
    total.sums += torch.tensor(
        [float(per_pair.sum()), *_counts(batch), *(mean * len(per_pair) for mean in means)], dtype=torch.float64
    )
    finite = per_pair.isfinite().tolist()
    total.suspects += [e.id for e, fine in zip(batch.examples, finite, strict=True) if not fine]


def _counts(batch: TokenBatch) -> tuple[int, int, int]:
    # What is packed is computed once however many rows it is in.
    tokens = sum(e.tokens for e in batch.examples) if batch.packed is None else batch.computed
    return tokens, sum(e.response_tokens for e in batch.examples), batch.computed


def over_processes(sums: Tensor, accelerator: Accelerator) -> Tensor:
    """``sums`` added up over all processes, float64 on the CPU."""
    if accelerator.num_processes == 1:
        return sums
    # float64 is not a type of every device; the counts of one batch are exact in float32 up to 16 million.
    reduced: Tensor = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum")
    return reduced.double().cpu()


def _over_all(total: _Total, objective: Objective, size: int, shared: _Shared) -> BatchFacts:
    loss, tokens, responses, positions, *metrics = over_processes(total.sums, objective.accelerator).tolist()
    means = {name: value / size for name, value in zip(METRICS, metrics, strict=True) if name in total.reported}
    of_modules = None if total.modules is None else over_processes(total.modules, objective.accelerator) / size
    return BatchFacts(
        loss=loss / size,
        metrics=means,
        tokens=round(tokens),
        response_tokens=round(responses),
        positions=round(positions),
        suspects=shared.suspects or tuple(total.suspects),
        running=shared.running,
        module_means=of_modules,
    )
