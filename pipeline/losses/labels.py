"""The label p: how sure it is that the chosen response is the better one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.loss.terms import DataLabel, RewardLabel, SmoothLabel, WinLabel
from pipeline.config.loss.terms import Label as LabelSettings
from pipeline.losses.batch import PairBatch
from pipeline.losses.links import Link, entropy_of, log_odds_of
from pipeline.losses.masked import constant


@dataclass(frozen=True, slots=True)
class Label:
    """p of each pair.

    Attributes:
        p: [B]; None: 1. Above 1 it corrects for a known share of flipped labels (robust DPO, arXiv:2403.00409).
        logit: [B] log p/(1 − p), where p is a probability.
        entropy: [B] to subtract from the loss, or None.
    """

    p: Tensor | None
    logit: Tensor | None = None
    entropy: Tensor | None = None


def label_of(batch: PairBatch, settings: LabelSettings) -> Label:
    """The label of each pair. Raises ValueError where rewards or win probabilities are asked for and missing."""
    match settings:
        case DataLabel():
            return Label(None if batch.soft_label is None else constant(batch.soft_label))
        case SmoothLabel():
            certain = torch.ones_like(constant(batch.chosen.policy[:, 0]))
            if settings.kind == "robust":
                return Label(certain * (1 - settings.epsilon) / (1 - 2 * settings.epsilon))
            return Label(certain * (1 - settings.epsilon), log_odds_of(certain * (1 - settings.epsilon)))
        case RewardLabel():
            logit = settings.eta * reward_gap(batch)
            return Label(torch.sigmoid(logit), logit, entropy_of(logit) if settings.entropy else None)
        case WinLabel():
            p = win_probability(batch)
            return Label(p, log_odds_of(p))


def labelled(z: Tensor, link: Link, label: Label) -> Tensor:
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


def win_probability(batch: PairBatch) -> Tensor:
    """P(chosen wins), [B]."""
    if batch.win_probability is None:
        raise ValueError("this loss needs win probabilities (PairBatch.win_probability)")
    return constant(batch.win_probability)
