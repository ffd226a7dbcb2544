"""List heads: losses over K scored responses at once. With K = 2 they equal the loss on pairs.

The head apa_token fits single tokens, each to an advantage that is given; the others compare scores of responses.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.config import Formula
from pipeline.config.loss.terms import AdvantageHead, HeadSettings, ListHead, TokenAdvantageHead
from pipeline.losses.batch import (
    GroupBatch,
    PairBatch,
    Side,
    at_least_float32,
    bounded_exp,
    change,
    constant,
    masked_mean,
    present_of,
)
from pipeline.losses.scores import aggregated, token_ratios

# Logit of a missing response: e^−1e9 is 0 in every dtype.
ABSENT = -1e9


def as_group(batch: PairBatch, head: HeadSettings) -> GroupBatch:
    """Pairs as groups of two.

    Without rewards, the chosen response is better with certainty and gets all of the target's weight. Only some heads
    accept that.

    Raises:
        ValueError: no rejected responses, or no rewards where the head needs them.
    """
    if batch.rejected is None:
        raise ValueError("this loss needs rejected responses (PairBatch.rejected)")
    if batch.reward_chosen is not None and batch.reward_rejected is not None:
        rewards = torch.stack([constant(batch.reward_chosen), constant(batch.reward_rejected)], dim=1)
    elif head.kind in ("cross_entropy", "rank"):
        certain = constant(batch.chosen.policy[:, 0])
        rewards = torch.stack([torch.zeros_like(certain), torch.full_like(certain, ABSENT)], dim=1)
    else:
        raise ValueError("this loss needs rewards (PairBatch.reward_chosen, reward_rejected)")
    return GroupBatch(responses=(batch.chosen, batch.rejected), rewards=rewards)


def head_loss(scores: Tensor, batch: GroupBatch, head: HeadSettings, beta: float) -> Tensor:
    """The loss of each group, [B].

    Args:
        scores: [B, K] R = β s; absent responses are not read.
        batch: rewards and presence.
        head: kind of loss, and the scale η of the rewards.
        beta: β of the scores.
    """
    present = present_of(batch)
    rewards = constant(batch.rewards).to(scores.dtype)
    if isinstance(head, AdvantageHead):
        return _fit_to_advantage(scores, rewards, present, head, beta)
    if not isinstance(head, ListHead):
        return _rank(scores, rewards, present)
    wanted = head.eta * rewards
    match head.kind:
        case "square_loo":
            return _square_loo(scores, wanted, present)
        case "cross_entropy":
            return (
                -(_log_softmax(wanted, present).exp() * _log_softmax(scores, present)).masked_fill(~present, 0).sum(1)
            )
        case "reverse_kl":
            ours = _log_softmax(scores, present)
            return (ours.exp() * (ours - _log_softmax(wanted, present))).masked_fill(~present, 0).sum(1)
        case "nca":
            target = _log_softmax(wanted, present).exp()
            pull = -(target * logsigmoid(scores)).masked_fill(~present, 0).sum(1)
            return pull - logsigmoid(-scores).masked_fill(~present, 0).sum(1) / present.sum(1)


def best(batch: GroupBatch) -> Tensor:
    """[B] index of the response with the largest reward."""
    return batch.rewards.masked_fill(~present_of(batch), -torch.inf).argmax(1)


def worst(batch: GroupBatch) -> Tensor:
    """[B] index of the response with the smallest reward."""
    return batch.rewards.masked_fill(~present_of(batch), torch.inf).argmin(1)


def _log_softmax(values: Tensor, present: Tensor) -> Tensor:
    return values.masked_fill(~present, ABSENT).log_softmax(1)


def _square_loo(scores: Tensor, wanted: Tensor, present: Tensor) -> Tensor:
    """½ Σ_k (own − mean of the others')² of score minus reward (RPO, arXiv:2502.00203; RLOO's baseline)."""
    difference = (scores - wanted).masked_fill(~present, 0)
    count = present.sum(1, keepdim=True)
    others = (difference.sum(1, keepdim=True) - difference) / (count - 1)
    return 0.5 * (difference - others).masked_fill(~present, 0).square().sum(1)


def _fit_to_advantage(scores: Tensor, rewards: Tensor, present: Tensor, head: AdvantageHead, beta: float) -> Tensor:
    """mean_k (R_k − η (r_k − V_k))², [B] (APA, arXiv:2306.02231, of whole responses).

    The soft value's mean stands for the expectation under the policy that the responses were drawn from. If that is the
    reference, the minimum over all policies is π_ref e^(ηr/β) / Z.
    """
    count = present.sum(1, keepdim=True).to(rewards.dtype)
    known = rewards.masked_fill(~present, 0)
    match head.value:
        case "mean":
            value = known.sum(1, keepdim=True) / count
        case "leave_one_out":
            value = (known.sum(1, keepdim=True) - known) / (count - 1)
        case "soft":
            ratio = head.eta / beta
            logits = (ratio * rewards).masked_fill(~present, ABSENT)
            value = (torch.logsumexp(logits, dim=1, keepdim=True) - count.log()) / ratio
    return (scores - head.eta * (rewards - value)).masked_fill(~present, 0).square().sum(1) / count.squeeze(1)


def fit_tokens(batch: GroupBatch, loss: Formula, head: TokenAdvantageHead) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over k of Agg_t (β h_t − η A_t)² + v ½ (V_t − G_t)², [B] (APA, arXiv:2306.02231, per token).

    Its exponential form is −e^(η A_t) β h_t, without a target. Also returns the mean sizes of h and, for the square, of
    its target η A/β, in nats per token: the target is mostly out of reach, so its size says how hard the loss pulls.

    Raises:
        ValueError: advantages, returns or values are missing.
    """
    present, ratios = present_of(batch), token_ratios(batch.responses, loss)
    values, sizes, targets = [], [], []
    for side, ratio in zip(batch.responses, ratios, strict=True):
        # What stands outside the mask may be NaN, and would be in the gradient of a square.
        inside = side.mask.bool()
        score = loss.beta * ratio.masked_fill(~inside, 0)
        wanted = head.eta * constant(_of(side, "advantage")).masked_fill(~inside, 0)
        error = (at_least_float32(_of(side, "token_value")) - constant(_of(side, "returns"))).masked_fill(~inside, 0)
        fit = (score - wanted).square() if head.form == "square" else -bounded_exp(wanted) * score
        values.append(aggregated(fit + head.value_weight * 0.5 * error.square(), side.mask, loss))
        sizes.append(masked_mean(ratio.detach().abs(), side.mask))
        targets.append(masked_mean(wanted.abs() / loss.beta, side.mask))
    found = {"ratio_per_token": sizes} | ({"target_per_token": targets} if head.form == "square" else {})
    return _over_present(values, present), {name: _over_present(v, present).mean() for name, v in found.items()}


def extremes(batch: GroupBatch, top: Tensor, bottom: Tensor) -> dict[str, Tensor]:
    """Means over the groups of the log-prob, and its change if the reference is known, of two responses, per token."""
    rows = torch.arange(len(top))
    known = {"logp": [masked_mean(constant(side.policy), side.mask) for side in batch.responses]}
    changes = [found for side in batch.responses if (found := change(side)) is not None]
    if len(changes) == len(batch.responses):
        known["change"] = changes
    return {
        f"{side}_{name}_per_token": torch.stack(values, dim=1)[rows, place].mean()
        for name, values in known.items()
        for side, place in (("chosen", top), ("rejected", bottom))
    }


def _over_present(values: list[Tensor], present: Tensor) -> Tensor:
    """Mean over k of K tensors [B], [B]."""
    return torch.stack(values, dim=1).masked_fill(~present, 0).sum(1) / present.sum(1)


def _of(side: Side, field: str) -> Tensor:
    value: Tensor | None = side.__getattribute__(field)
    if value is None:
        raise ValueError(f"this loss needs {field} of each token (Side.{field})")
    return value


def _rank(scores: Tensor, rewards: Tensor, present: Tensor) -> Tensor:
    """Σ over r_i < r_j of max(0, s_i − s_j) (RRHF, arXiv:2304.05302, equation 3)."""
    scores = scores.masked_fill(~present, 0)
    ordered = (rewards.unsqueeze(2) < rewards.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)
    wrong = (scores.unsqueeze(2) - scores.unsqueeze(1)).clamp(min=0)
    return wrong.masked_fill(~ordered, 0).sum((1, 2))
