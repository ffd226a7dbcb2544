"""Preference terms: links of margins of the two scores, or of one of them alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config import Composition
from pipeline.config.loss.terms import Term
from pipeline.losses.batch import PairBatch, UnpairedBatch
from pipeline.losses.labels import Label, labelled, win_probability
from pipeline.losses.links import make_link
from pipeline.losses.masked import constant


def pair_term(z: Tensor, loss: Composition, label: Label, dispersion: Tensor | None) -> Tensor:
    """p f(z) + (1 − p) f(−z) less the label's entropy, [B]; reverse_kl and rao_kupper have the label inside."""
    link = make_link(loss.link, dispersion=dispersion, label_logit=label.logit, label=label.p)
    value = link(z) if loss.link.kind in ("reverse_kl", "rao_kupper") else labelled(z, link, label)
    return value if label.entropy is None else value - label.entropy.to(value.dtype)


def one_sided_terms(
    reward_w: Tensor, reward_l: Tensor, batch: PairBatch, loss: Composition, statistics: Mapping[str, float]
) -> Tensor:
    """Σ_k c_k f_k(a_k R_w + b_k R_l − m_k), [B]."""
    total = torch.zeros_like(reward_w)
    for term in loss.terms:
        z = term.chosen * reward_w + term.rejected * reward_l - _target(term, batch, loss.beta, statistics)
        total = total + term.coefficient * make_link(term.link)(z)
    return total


def unpaired_terms(reward: Tensor, batch: UnpairedBatch, loss: Composition, statistics: Mapping[str, float]) -> Tensor:
    """The terms of a marked response, [B]: those that read the chosen side if it is good, else the others."""
    desirable = batch.desirable.bool()
    total = torch.zeros_like(reward)
    for term in loss.terms:
        if term.target == "win":
            raise ValueError("single responses have no probability to win against the other of a pair")
        target = _shift(term, loss.beta, statistics)
        value = term.coefficient * make_link(term.link)((term.chosen + term.rejected) * reward - target)
        total = total + torch.where(desirable == (term.chosen != 0), value, torch.zeros_like(value))
    return total


def _target(term: Term, batch: PairBatch, beta: float, statistics: Mapping[str, float]) -> Tensor | float:
    if term.target != "win":
        return _shift(term, beta, statistics)
    wins = win_probability(batch)
    if term.chosen != 0:
        return wins - 0.5
    return (1 - wins if batch.win_probability_rejected is None else constant(batch.win_probability_rejected)) - 0.5


def _shift(term: Term, beta: float, statistics: Mapping[str, float]) -> float:
    side = term.chosen + term.rejected
    match term.target:
        case "baseline":
            return side * beta * statistics["baseline_chosen" if term.chosen != 0 else "baseline_rejected"]
        case "running_mean":
            return side * statistics["running_mean"]
        case "win":
            raise ValueError("a win target belongs to a pair")
    return term.target
