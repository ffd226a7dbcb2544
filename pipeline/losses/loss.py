"""The loss: one formula with components that a ``Composition`` chooses.

::

    score     s_j = Agg_t[ w_t (a log π(y_t) − log ζ(y_t)) ] + κ Σ_t m_t KL_t     ζ: the prior   (arXiv:2501.01544)
    shape     R_j = β d T(s_j)                                                    d: dispersion  (arXiv:2405.14953)
    margin    z = R_w − R_l − m
    link      L = ω A [ p f(z) + (1 − p) f(−z) + Σ_k c_k f_k(a_k R_w + b_k R_l − m_k) ]
                                                                                  f: the link    (arXiv:2402.05749)
    total     L + Σ_r λ_r Reg_r

Over K responses, a list head replaces the links. A sum adds up several such losses of the same examples. This module
knows no trainer and no model. It does not reduce over the batch: the caller sums and decides what to divide by.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import Composition, Formula, preset_names, resolve
from pipeline.config.loss.margins import SortedMargin
from pipeline.config.loss.needs import Needs, needs_of
from pipeline.config.loss.terms import TokenAdvantageHead
from pipeline.errors import UserError, first_lines
from pipeline.losses.batch import (
    Batch,
    GroupBatch,
    PairBatch,
    Side,
    UnpairedBatch,
    at_least_float32,
    bounded_exp,
    likelihoods,
    mean_where,
    present_of,
    refuse_empty,
)
from pipeline.losses.dispersion import dispersion_of
from pipeline.losses.list_heads import as_group, best, extremes, fit_tokens, head_loss, worst
from pipeline.losses.margins import margin_of, sorted_margins, sorted_terms
from pipeline.losses.regularisers import nll, regularisers
from pipeline.losses.scores import scores, shaped
from pipeline.losses.statistics import Observed, State, kept, observe, summarise
from pipeline.losses.terms import label_of, one_sided_terms, pair_term, unpaired_terms
from pipeline.losses.weights import likeliness, uniform


@dataclass(frozen=True, slots=True)
class LossOutput:
    """``per_pair`` [B] carries the gradient; ``metrics`` are detached means over the batch, 0-d.

    ``rows``: how many examples a metric is the mean of, for those that leave some out; the mean of none is 0.
    ``parts``: of a sum, the mean of each part's own loss, before its weight; ``metrics`` are the first part's.
    """

    per_pair: Tensor
    metrics: Mapping[str, Tensor]
    rows: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name. Call it with the ``PairBatch``, ``GroupBatch`` or ``UnpairedBatch`` that it is made for.

    Attributes:
        needs: what it reads; ``sorted(loss.needs)`` lists optional fields of the batch.
        members: of a sum, its parts with their weights; names are unique.
    """

    name: str
    composition: Formula
    needs: Needs = field(init=False, repr=False, compare=False)
    members: tuple[tuple[float, "Loss"], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", needs_of(self.composition))
        parts = self.composition.sum if isinstance(self.composition, Composition) else ()
        before = [[part.preset for part in parts[:place]].count(part.preset) for place, part in enumerate(parts)]
        names = [f"{part.preset}_{n + 1}" if n else part.preset for part, n in zip(parts, before, strict=True)]
        members = tuple((part.weight, Loss(name, part.settings)) for part, name in zip(parts, names, strict=True))
        object.__setattr__(self, "members", members)

    def __call__(self, batch: Batch, statistics: Mapping[str, float] | None = None) -> LossOutput:
        """The loss of each pair, response or group, in float32, or in float64 if the batch is.

        Args:
            batch: has the fields that ``needs`` names.
            statistics: from ``summarise``, for a loss that needs them; None: those of this batch alone.

        Raises:
            ValueError: a response without tokens, or a part that the loss needs is missing.
        """
        if self.members:
            return self._of_sum(batch, statistics)
        if isinstance(batch, PairBatch) and self.composition.head is not None:
            batch = as_group(batch, self.composition.head)
        refuse_empty(batch)
        if isinstance(batch, GroupBatch):
            return self._of_groups(batch)
        known: Mapping[str, float] = {}
        if self.needs.statistics:
            known = self.summarise(self.observe(batch), {})[0] if statistics is None else statistics
        return self._of_single(batch, known) if isinstance(batch, UnpairedBatch) else self._of_pairs(batch, known)

    def observe(self, batch: Batch) -> Observed:
        """Contribution of each pair of ``batch`` to the statistics: name -> [n], constant; empty if none is needed."""
        if not self.needs.statistics or isinstance(batch, GroupBatch):
            return {}
        if self.members:
            seen = {member.name: member.observe(batch) for _, member in self.members}
            return {f"{name}.{key}": values for name, found in seen.items() for key, values in found.items()}
        if isinstance(batch, PairBatch):
            self._rejected(batch)
        else:
            self._takes_single()
        return observe(batch, self.composition)

    def summarise(self, observed: Mapping[str, Tensor], state: Mapping[str, float]) -> tuple[State, State]:
        """(statistics of the global batch, the state after it), from all pairs' ``observed`` and the state before."""
        if not self.members:
            return summarise(observed, state, self.composition)
        statistics: State = {}
        after: State = {}
        for _, member in self.members:
            if member.needs.statistics:
                found = member.summarise(_of_member(observed, member), _of_member(state, member))
                for known, values in zip((statistics, after), found, strict=True):
                    known |= {f"{member.name}.{key}": value for key, value in values.items()}
        return statistics, after

    def _of_sum(self, batch: Batch, statistics: Mapping[str, float] | None) -> LossOutput:
        outputs = {
            member.name: member(batch, None if statistics is None else _of_member(statistics, member))
            for _, member in self.members
        }
        per_pair = torch.stack([w * outputs[member.name].per_pair for w, member in self.members]).sum(0)
        metrics: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        for output in reversed(outputs.values()):
            metrics, rows = {**metrics, **output.metrics}, {**rows, **output.rows}
        parts = {name: output.per_pair.detach().mean() for name, output in outputs.items()}
        return LossOutput(per_pair, metrics, rows, parts)

    def _of_pairs(self, batch: PairBatch, statistics: Mapping[str, float]) -> LossOutput:
        parts = self.composition
        sides = {"chosen": batch.chosen, "rejected": batch.rejected}
        known = {side: likelihoods(found) for side, found in sides.items() if found is not None}
        metrics = {name.format(side): values.mean() for side, of in known.items() for name, values in of.items()}
        per_pair = torch.zeros_like(at_least_float32(batch.chosen.policy[:, 0]))
        if parts.links:
            value, rewards = self._preference(batch, statistics)
            per_pair = per_pair + parts.weight / parts.beta**parts.unscale * value
            metrics |= rewards
        if parts.nll > 0:
            likelihood = nll(batch.chosen, parts.nll_aggregate)
            per_pair = per_pair + parts.nll * likelihood
            metrics["nll"] = likelihood.detach().mean()
        beside = regularisers(batch, parts)
        if beside is not None:
            per_pair = per_pair + beside
            metrics["regulariser"] = beside.detach().mean()
        # Rewards and other inputs may be float64; the log-probabilities decide the dtype.
        return LossOutput(per_pair.to(at_least_float32(batch.chosen.policy).dtype), metrics)

    def _preference(self, batch: PairBatch, statistics: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """ω times the sum of all preference terms, [B], and its metrics."""
        parts = self.composition
        raw = scores((batch.chosen, self._rejected(batch)), parts, batch.seeds)
        shapes = [shaped(s, parts.shape, chosen) for s, chosen in zip(raw, (True, False), strict=True)]
        d = None if parts.dispersion is None else dispersion_of(batch, parts.dispersion)
        scale: Tensor | float = parts.beta * statistics.get("scale", 1.0)
        if d is not None and parts.link.kind != "mallows_phi":
            scale = scale * d
        reward_w, reward_l = scale * shapes[0], scale * shapes[1]
        gap = reward_w - reward_l
        value = torch.zeros_like(gap)
        if isinstance(parts.margin, SortedMargin) and parts.margin.compare == "responses":
            label = label_of(batch, parts.label)
            both = sorted_margins(batch, parts, (reward_w, reward_l), statistics)
            terms = torch.stack([pair_term(z, parts, label, d) for z in both]).sum(0)
            # Each has the gradient by one response; the loss itself is there twice.
            value = value + terms - terms.detach() / 2
        elif parts.link.kind != "none":
            z = gap - margin_of(batch, parts, scale, statistics)
            value = value + pair_term(z, parts, label_of(batch, parts.label), d)
        if parts.terms:
            value = value + one_sided_terms(reward_w, reward_l, batch, parts, statistics)
        omega = self._pair_weight(batch, shapes[0] - shapes[1], statistics)
        return value if omega is None else omega * value, _rewards(reward_w, reward_l)

    def _pair_weight(self, batch: PairBatch, gap: Tensor, statistics: Mapping[str, float]) -> Tensor | None:
        """ω, [B]: how likely the policy makes the pair (WPO, arXiv:2406.11827), or which pairs are kept (β-DPO)."""
        parts = self.composition
        if parts.pair_weight == "policy":
            cap = math.inf if parts.pair_weight_cap is None else math.log(parts.pair_weight_cap)
            likely = likeliness(batch.chosen) + likeliness(self._rejected(batch))
            return bounded_exp(likely.clamp(max=cap))
        if parts.scale is None:
            return None
        seeds = torch.arange(len(gap)) if batch.seeds is None else batch.seeds
        return kept(gap.detach(), uniform(seeds).to(gap.device), statistics)

    def _of_single(self, batch: UnpairedBatch, statistics: Mapping[str, float]) -> LossOutput:
        parts = self.composition
        self._takes_single()
        (score,) = scores((batch.responses,), parts)
        reward = parts.beta * score
        terms = sorted_terms if isinstance(parts.margin, SortedMargin) else unpaired_terms
        value = parts.weight / parts.beta**parts.unscale * terms(reward, batch, parts, statistics)
        good = batch.desirable.bool()
        values = {"reward_{}": reward.detach(), **likelihoods(batch.responses)}
        sides = {"chosen": good, "rejected": ~good}
        means = {name.format(side): mean_where(v, rows) for name, v in values.items() for side, rows in sides.items()}
        counts = {name.format(side): int(rows.sum()) for name in values for side, rows in sides.items()}
        return LossOutput(value, means, counts)

    def _of_groups(self, batch: GroupBatch) -> LossOutput:
        parts = self.composition
        if parts.head is None:
            raise ValueError(f"{self.name}: this loss compares two responses; it cannot use groups")
        present = present_of(batch)
        rewards = torch.stack([parts.beta * s for s in scores(batch.responses, parts)], dim=1)
        rows, top, bottom = torch.arange(len(rewards)), best(batch), worst(batch)
        metrics = {
            **_rewards(rewards[rows, top].detach(), rewards[rows, bottom].detach()),
            **extremes(batch, top, bottom),
        }
        if isinstance(parts.head, TokenAdvantageHead):
            value, sizes = fit_tokens(batch, parts, parts.head)
            metrics |= sizes
        else:
            value = head_loss(rewards, batch, parts.head, parts.beta)
        per_pair = parts.weight * value
        if parts.nll > 0:
            losses = torch.stack([nll(side, parts.nll_aggregate) for side in batch.responses], dim=1)
            of_best = losses.masked_fill(~present, 0)[rows, top]
            per_pair = per_pair + parts.nll * of_best
            metrics["nll"] = of_best.detach().mean()
        return LossOutput(per_pair, metrics)

    def _takes_single(self) -> None:
        if not self.composition.unpaired:
            raise ValueError(f"{self.name}: this loss compares two responses; it cannot use single ones")

    def _rejected(self, batch: PairBatch) -> Side:
        if batch.rejected is None:
            raise ValueError(f"{self.name}: this loss needs rejected responses (PairBatch.rejected)")
        return batch.rejected


_Value = TypeVar("_Value")


def _of_member(values: Mapping[str, _Value], member: Loss) -> dict[str, _Value]:
    start = f"{member.name}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def _rewards(reward_w: Tensor, reward_l: Tensor) -> dict[str, Tensor]:
    gap = (reward_w - reward_l).detach()
    return {
        "reward_chosen": reward_w.detach().mean(),
        "reward_rejected": reward_l.detach().mean(),
        "margin": gap.mean(),
        "accuracy": (gap > 0).to(gap.dtype).mean(),
    }


__all__ = ["load_preset", "preset_names"]


def load_preset(name: str, **overrides: object) -> Loss:
    """The loss of configs/loss/``name``.yaml with settings replaced by ``overrides``.

    An override is a field of ``Composition`` (``beta``, ``link``), or a setting of one of its components, by name
    alone if the name is unique (``gamma``).

    Raises:
        UserError: no such preset, an ambiguous name, or an override that the schema refuses.
    """
    try:
        return Loss(name, Composition.model_validate(resolve(name, overrides)))
    except ValidationError as error:
        faults = [
            f"loss.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise UserError(f"loss {name}:\n{first_lines(faults)}") from None
    except ValueError as error:
        raise UserError(f"loss.{error}") from None
