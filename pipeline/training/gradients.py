"""Loss and gradient of one global batch, however it is cut."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pipeline.losses import Loss
from pipeline.models.token_logps import TokenFacts
from pipeline.training.auxiliary.loser_guard import LoserGuard
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.auxiliary.routers import ExpertUse, Passed, Routed, Routers, RouterSums
from pipeline.training.batches.ahead import Ahead
from pipeline.training.batches.collate import TokenBatch
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, Lots, micro_batches
from pipeline.training.distributed.fsdp import unreduced
from pipeline.training.distributed.process_group import over_processes
from pipeline.training.distributed.rounded_adamw import sum_in_float32
from pipeline.training.distributed.zero import ZeroEngine
from pipeline.training.step_log import METRICS
from pipeline.training.watch.readings import ending_logps


@dataclass(frozen=True, slots=True)
class Objective:
    """The function whose gradient is taken.

    Attributes:
        policy: a ``TokenLogps``, perhaps wrapped by accelerate or DeepSpeed.
        loss: unreduced.
        modules: trained together with the policy.
        accelerator: gives rank, device and the backward pass.
        end_ids: tokens that end a response; without them, none is known to have ended.
        routers: of the policy, if it is a mixture of experts.
        whole_sums: see ``unreduced``.
        ahead: what later passes need is made in a thread.
        guard: takes a part of the rejected images' gradient.
    """

    policy: nn.Module
    loss: Loss
    modules: AuxiliaryModules
    accelerator: Accelerator
    end_ids: frozenset[int] = frozenset()
    routers: Routers | None = None
    whole_sums: bool = False
    ahead: Ahead | None = None
    guard: LoserGuard | None = None

    @property
    def balances(self) -> bool:
        """Whether the routers' loss is trained."""
        return self.routers is not None and self.routers.trained

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, which depends on the policy."""
        if isinstance(self.policy, ZeroEngine):
            self.policy.backward(loss)
        else:
            self.accelerator.backward(loss)


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """Results of one global batch, over all processes.

    Attributes:
        loss: mean over its examples; may be infinite or NaN.
        metrics: means over its examples, or those of them that have the value; of ``METRICS``, those with any.
        parts: means of the parts of a sum over its examples; empty for another loss.
        tokens, response_tokens, positions: counts; only the last includes padding.
        suspects: ids of this process's examples whose loss is not finite, or that make the others' NaN.
        running: the loss's running statistics after the batch.
        module_means: means over its examples for the auxiliary modules; None if they need none.
        experts: their use; None without any.
    """

    loss: float
    metrics: dict[str, float]
    parts: dict[str, float]
    tokens: int
    response_tokens: int
    positions: int
    suspects: tuple[str, ...]
    running: Mapping[str, float] = field(default_factory=dict)
    module_means: Tensor | None = None
    experts: ExpertUse | None = None


def accumulate_gradient(
    objective: Objective,
    examples: Sequence[Example],
    cut: Cut,
    lots: Lots | None = None,
    running: Mapping[str, float] | None = None,
) -> BatchFacts:
    """Add the gradient of (1/B) Σ_i L_i, with B the examples of all processes, and that of the routers' loss.

    Losses that read batch statistics, and routers, get those of the whole batch: if it is cut, a pass without gradient
    collects them first, with the same dropout.

    Args:
        objective: the policy, loss and modules.
        examples: the global batch; each process works on its share.
        cut: into forward passes.
        lots: random draws of this step.
        running: the loss's running statistics so far.
    """
    lots, accelerator = lots or Lots(), objective.accelerator
    objective.modules.gather()
    rank, world = accelerator.process_index, accelerator.num_processes
    own = micro_batches(examples, cut, rank, world, needs=objective.loss.needs, seed=lots.seed, epoch=lots.epoch)
    batches = [batch.to(accelerator.device) for batch in own]
    whole = len(batches) == 1 and world == 1
    shared = None if whole else _look_ahead(objective, batches, running or {}, cut.context)
    sum_in_float32(objective.policy, several=len(batches) > 1)
    if objective.ahead is not None:
        objective.ahead.begin(batches)
    nothing = torch.zeros(4 + 2 * len(METRICS) + len(objective.loss.members), dtype=torch.float64)
    total = _Total(objective.modules.nothing_summed(), nothing)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with nullcontext() if last else unreduced(objective.policy, accelerator, whole_sums=objective.whole_sums):
            facts, routed = _facts(objective, batch)
            if whole:
                shared = _statistics(objective, [_observe(objective, batch, facts, routed)], running or {}, 1)
            assert shared is not None, "of the whole batch, or of the passes before"
            balance = total.routers.add(routed, shared.counts, objective.routers)
            _backward(objective, batch, facts, shared, len(examples), total, balance * world)
    if objective.guard is not None:
        objective.guard.settle()
    objective.modules.average_gradients(accelerator, cut.context)
    assert shared is not None, "every process makes at least one pass"
    return _over_all(total, objective, len(examples), shared, cut.context)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The loss's statistics for a global batch, running statistics after it, and examples with non-finite values.

    ``counts``: ``Routed.counts`` of the global batch, if the routers' loss is trained.
    """

    statistics: Mapping[str, float]
    running: Mapping[str, float]
    suspects: tuple[str, ...] = ()
    counts: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Observed:
    """One micro-batch's part in the statistics of its global batch.

    Attributes:
        loss: name -> n numbers.
        modules: rows for the auxiliary modules.
        suspects: ids of examples with non-finite numbers, which also make the loss of all others NaN.
        counts: ``Routed.counts``.
    """

    loss: Mapping[str, Sequence[float]]
    modules: Tensor | None
    suspects: tuple[str, ...]
    counts: Tensor | None


@dataclass(slots=True)
class _Total:
    """Sums over this process's micro-batches: loss, counts, metrics, rows of each, parts; `modules` as ExtraLoss."""

    modules: Tensor | None
    sums: Tensor
    suspects: list[str] = field(default_factory=list)
    routers: RouterSums = field(default_factory=RouterSums)


def _facts(objective: Objective, batch: TokenBatch) -> tuple[TokenFacts, Routed | None]:
    routers = objective.routers
    with nullcontext(Passed()) if routers is None else routers.watched() as passed:
        facts: TokenFacts = objective.policy(batch.ids, batch.mask, batch.packed)
    routed = None if routers is None else routers.routed(passed, batch)
    return objective.modules.token_facts(facts, batch.mask), routed


def _look_ahead(
    objective: Objective, batches: Sequence[TokenBatch], running: Mapping[str, float], context: int
) -> _Shared:
    """Return statistics of the global batch, from a pass without gradient if any are read."""
    if not objective.loss.needs.statistics and not objective.modules.waits and not objective.balances:
        return _Shared({}, dict(running))
    device = objective.accelerator.device
    # Dropout must draw the same masks as in the pass with gradient.
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        seen = [_observe(objective, batch, *_facts(objective, batch)) for batch in batches]
    return _statistics(objective, seen, running, context)


@torch.no_grad()
def _observe(objective: Objective, batch: TokenBatch, facts: TokenFacts, routed: Routed | None) -> _Observed:
    counts = None if routed is None else routed.counts
    if not batch.examples:
        return _Observed({}, None, (), counts)
    of_modules = objective.modules.observe(facts, batch)
    # Terms of auxiliary modules are left out: no statistic uses them.
    values = {name: v.double().tolist() for name, v in objective.loss.observe(batch.loss_batch(facts)).items()}
    rows = zip(*values.values(), strict=True) if values else ()
    finite = [all(map(math.isfinite, row)) for row in rows]
    suspects = tuple(e.id for e, fine in zip(batch.examples, finite, strict=False) if not fine)
    return _Observed(values, of_modules, suspects, counts)


def _statistics(objective: Objective, seen: Sequence[_Observed], running: Mapping[str, float], context: int) -> _Shared:
    """Return the statistics of what all processes have ``seen``; give the auxiliary modules their part."""
    of_processes = gather_object([list(seen)]) if objective.accelerator.num_processes > 1 else [seen]
    # Those of one context have seen the same.
    every = [one for part in of_processes[::context] for one in part]
    objective.modules.begin([one.modules for one in every if one.modules is not None])
    suspects = tuple(id for one in every for id in one.suspects)
    counted = [one.counts for one in every if one.counts is not None]
    counts = torch.stack(counted).sum(0) if counted else None
    if not objective.loss.needs.statistics:
        return _Shared({}, dict(running), suspects, counts)
    names = sorted({name for one in every for name in one.loss})
    joined = {
        name: torch.tensor([x for one in every for x in one.loss.get(name, ())], dtype=torch.float64) for name in names
    }
    statistics, after = objective.loss.summarise(joined, running)
    return _Shared(statistics, after, suspects, counts)


def _backward(
    objective: Objective,
    batch: TokenBatch,
    facts: TokenFacts,
    shared: _Shared,
    size: int,
    total: _Total,
    balance: Tensor | float,
) -> None:
    """Add the gradient of one micro-batch of a global batch of ``size`` examples; add its sums to ``total``."""
    accelerator, modules = objective.accelerator, objective.modules
    if not batch.examples:
        objective.backward(facts.policy.sum() * 0 + balance)
        return
    # Data-parallel wrappers average gradients over processes, so each contributes its share times their number.
    scale = accelerator.num_processes / size
    found = modules.pair_facts(batch.loss_batch(facts), facts, batch)
    output = objective.loss(found, shared.statistics)
    if objective.guard is None or batch.kind != "pair":
        objective.backward(output.per_pair.sum() * scale + balance)
    else:
        objective.guard.backward(output.per_pair.sum() * scale, facts.policy, batch.block(1))
    extra = modules.extra_loss(facts, batch)
    if extra is not None:
        accelerator.backward(extra.per_example.sum() * scale)
        total.modules = extra.sums if total.modules is None else total.modules + extra.sums
    per_pair = output.per_pair.detach()
    endings = ending_logps(facts, batch, objective.end_ids)
    known = {name: (float(mean), output.rows.get(name, len(per_pair))) for name, mean in output.metrics.items()}
    known["ending_logp"] = (float(endings.mean()) if len(endings) else 0.0, len(endings))
    means = [known.get(name, (0.0, 0)) for name in METRICS]
    sums, rows = [mean * count for mean, count in means], [count for _, count in means]
    parts = [float(output.parts[member.name]) * len(per_pair) for _, member in objective.loss.members]
    total.sums += torch.tensor([float(per_pair.sum()), *batch.counts, *sums, *rows, *parts], dtype=torch.float64)
    finite = per_pair.isfinite().tolist()
    total.suspects += [e.id for e, fine in zip(batch.examples, finite, strict=True) if not fine]


def _over_all(total: _Total, objective: Objective, size: int, shared: _Shared, context: int) -> BatchFacts:
    # Processes of one context have counted the same.
    loss, tokens, responses, positions, *others = (over_processes(total.sums, objective.accelerator) / context).tolist()
    count = len(METRICS)
    of_rows, parts = zip(METRICS, others[:count], others[count : 2 * count], strict=True), others[2 * count :]
    means = {name: value / rows for name, value, rows in of_rows if rows}
    of_modules = total.modules
    if of_modules is not None:
        of_modules = over_processes(of_modules, objective.accelerator) / (size * context)
    return BatchFacts(
        loss=loss / size,
        metrics=means,
        parts={member.name: value / size for (_, member), value in zip(objective.loss.members, parts, strict=True)},
        tokens=round(tokens),
        response_tokens=round(responses),
        positions=round(positions),
        suspects=shared.suspects or tuple(total.suspects),
        running=shared.running,
        module_means=of_modules,
        experts=total.routers.use(lambda sums: over_processes(sums, objective.accelerator)),
    )
