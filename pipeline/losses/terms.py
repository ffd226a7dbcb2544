"""Preference terms: links applied to margins of the two scores, or of one score alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import Formula
from pipeline.config.loss.terms import DataLabel, RewardLabel, SmoothLabel, Term, WinLabel
from pipeline.config.loss.terms import Label as LabelSettings
from pipeline.losses.batch import PairBatch, UnpairedBatch, constant
from pipeline.losses.links import LinkFunction, entropy_of, log_odds_of, make_link


@dataclass(frozen=True, slots=True)
class _Label:
    """p of each pair.

    Attributes:
        p: [B]; None: 1. Above 1 it corrects for a known share of flipped labels (robust DPO, arXiv:2403.00409).
        logit: [B] log p/(1 − p), where p is a probability.
        entropy: [B] to subtract from the loss, or None.
    """

    p: Tensor | None
    logit: Tensor | None = None
    entropy: Tensor | None = None


def label_of(batch: PairBatch, settings: LabelSettings) -> _Label:
    """The label of each pair. Raises ValueError if it needs rewards or win probabilities and they are missing."""
    match settings:
        case DataLabel():
            return _Label(None if batch.soft_label is None else constant(batch.soft_label))
        case SmoothLabel():
            p = torch.full_like(constant(batch.chosen.policy[:, 0]), certainty(settings))
            return _Label(p) if settings.kind == "robust" else _Label(p, log_odds_of(p))
        case RewardLabel():
            logit = settings.eta * reward_gap(batch)
            return _Label(torch.sigmoid(logit), logit, entropy_of(logit) if settings.entropy else None)
        case WinLabel():
            p = win_probabilities_of(batch)[0]
            return _Label(p, log_odds_of(p))


def certainty(settings: LabelSettings) -> float:
    """p where it is the same for all responses."""
    match settings:
        case DataLabel():
            return 1.0
        case SmoothLabel():
            flipped = settings.epsilon
            return (1 - flipped) / (1 - 2 * flipped) if settings.kind == "robust" else 1 - flipped
        case _:
            raise ValueError(f"label: {settings.kind} is that of a pair")


def _labelled(z: Tensor, link: LinkFunction, label: _Label) -> Tensor:
    """p f(z) + (1 − p) f(−z), [B]."""
    if label.p is None:
        return link(z)
    p = label.p.to(z.dtype)
    return p * link(z) + (1 - p) * link(-z)


def reward_gap(batch: PairBatch) -> Tensor:
    """r_w − r_l, [B]."""
    if batch.reward_chosen is None or batch.reward_rejected is None:
        raise ValueError("this loss needs rewards (PairBatch.reward_chosen, reward_rejected)")
    return constant(batch.reward_chosen) - constant(batch.reward_rejected)


def win_probabilities_of(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """P(chosen wins) and P(rejected wins), [B] each; the second is 1 minus the first if it is not given."""
    if batch.win_probability is None:
        raise ValueError("this loss needs win probabilities (PairBatch.win_probability)")
    wins, others = constant(batch.win_probability), batch.win_probability_rejected
    return wins, 1 - wins if others is None else constant(others)


def pair_term(z: Tensor, loss: Formula, label: _Label, dispersion: Tensor | None) -> Tensor:
    """p f(z) + (1 − p) f(−z) minus the label's entropy, [B]; reverse_kl and rao_kupper read the label themselves."""
    link = make_link(loss.link, dispersion=dispersion, label_logit=label.logit, label=label.p)
    value = link(z) if loss.link.kind in ("reverse_kl", "rao_kupper") else _labelled(z, link, label)
    return value if label.entropy is None else value - label.entropy.to(value.dtype)


def one_sided_terms(
    reward_w: Tensor, reward_l: Tensor, batch: PairBatch, loss: Formula, statistics: Mapping[str, float]
) -> Tensor:
    """Σ_k c_k f_k(a_k R_w + b_k R_l − m_k), [B]."""
    total = torch.zeros_like(reward_w)
    for term in loss.terms:
        z = term.chosen * reward_w + term.rejected * reward_l - _target(term, batch, loss.beta, statistics)
        total = total + term.coefficient * make_link(term.link)(z)
    return total


def unpaired_terms(reward: Tensor, batch: UnpairedBatch, loss: Formula, statistics: Mapping[str, float]) -> Tensor:
    """The terms of a marked response, [B]: those of the chosen side if it is good, else those of the rejected side."""
    desirable = batch.desirable.bool()
    total = torch.zeros_like(reward)
    for term in loss.terms:
        if term.target == "win":
            raise ValueError("single responses have no probability of winning against the other of a pair")
        target = _shift(term, loss.beta, statistics)
        value = term.coefficient * make_link(term.link)((term.chosen + term.rejected) * reward - target)
        total = total + torch.where(desirable == (term.chosen != 0), value, torch.zeros_like(value))
    return total


def _target(term: Term, batch: PairBatch, beta: float, statistics: Mapping[str, float]) -> Tensor | float:
    if term.target != "win":
        return _shift(term, beta, statistics)
    chosen, rejected = win_probabilities_of(batch)
    return (chosen if term.chosen != 0 else rejected) - 0.5


def _shift(term: Term, beta: float, statistics: Mapping[str, float]) -> float:
    side = term.chosen + term.rejected
    match term.target:
        case "baseline":
            return side * beta * statistics["baseline_chosen" if term.chosen != 0 else "baseline_rejected"]
        case "batch_mean":
            return side * beta * statistics["batch_mean"]
        case "running_mean":
            return side * statistics["running_mean"]
        case "win":
            raise ValueError("a win target needs a pair")
    return term.target
