"""Statistics over the whole batch, and running ones, for the losses that read them.

``observe`` returns the contribution of each pair; ``summarise`` turns all contributions and the state so far into
numbers. The trainer passes the contributions of the *global* batch, so that neither micro-batches nor processes change
the loss, and keeps the state in its checkpoints.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.config import Formula
from pipeline.config.loss.margins import GapMargin, SortedMargin
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.terms import BatchScale
from pipeline.losses.batch import PairBatch, UnpairedBatch
from pipeline.losses.margins import keys_of, log_ratio_gap, reference_gap
from pipeline.losses.scores import scores, shaped
from pipeline.losses.weights import uniform

Observed = dict[str, Tensor]
State = dict[str, float]

# Smallest β in β-DPO's code.
SMALLEST_BETA = 1e-3


@torch.no_grad()
def observe(batch: PairBatch | UnpairedBatch, loss: Formula) -> Observed:
    """Contribution of each pair (or response) to the statistics: name -> [n], constant."""
    if isinstance(batch, UnpairedBatch):
        return _observe_unpaired(batch, loss)
    assert batch.rejected is not None, "checked by the loss before"
    found: Observed = {}
    raw = scores((batch.chosen, batch.rejected), loss, batch.seeds)
    found["score_chosen"], found["score_rejected"] = (
        shaped(s, loss.shape, chosen) for s, chosen in zip(raw, (True, False), strict=True)
    )
    if isinstance(loss.margin, GapMargin):
        found["gap"] = log_ratio_gap(batch)
    if isinstance(loss.margin, SortedMargin):
        found["pair"] = keys_of(batch)
        found["reference"] = reference_gap(batch, loss)
    if loss.scale is not None:
        found["gap"] = found["score_chosen"] - found["score_rejected"]
        seeds = torch.arange(len(found["gap"])) if batch.seeds is None else batch.seeds
        found["lot"] = uniform(seeds).to(found["gap"].device)
    return found


def summarise(observed: Mapping[str, Tensor], state: Mapping[str, float], loss: Formula) -> tuple[State, State]:
    """(statistics for this batch, the state after it).

    Args:
        observed: from ``observe``, for all pairs of the global batch.
        state: after the previous batch; empty at the start.
        loss: determines which statistics.
    """
    statistics: State = {}
    after: State = {}
    if needs_of(loss).baseline:
        statistics |= _baselines(observed)
    if any(term.target == "batch_mean" for term in loss.terms):
        parts = [observed[name] for name in ("score_chosen", "score_rejected", "score") if name in observed]
        statistics["batch_mean"] = max(0.0, _mean(torch.cat(parts)))
    if any(term.target == "running_mean" for term in loss.terms):
        after |= _running_reward(observed, state, loss.beta)
        statistics["running_mean"] = after["reward_sum"] / max(after["reward_count"], 1.0)
    if isinstance(loss.margin, GapMargin):
        after |= _running_gap(observed["gap"], state, loss.margin.momentum)
        statistics |= {"gap_mean": after["gap_mean"], "gap_std": after["gap_std"]}
    if isinstance(loss.margin, SortedMargin):
        statistics |= _couplings(observed) if "good" in observed else _partners(observed, loss.margin)
    if loss.scale is not None:
        after |= _running_gap(observed["gap"], state, loss.scale.momentum)
        statistics |= _batch_scale(observed, {**after, **state}, loss.scale, loss.beta)
    return statistics, after


def _partners(observed: Mapping[str, Tensor], margin: SortedMargin) -> State:
    """What each pair of the global batch is compared with: the value of its rank in the other sample.

    Equal values are ordered by the pairs' keys, so that no split of the batch changes a rank.
    """
    names = [str(int(pair)) for pair in observed["pair"].tolist()]
    chosen, rejected = (observed[name].double().tolist() for name in ("score_chosen", "score_rejected"))
    if margin.compare == "responses":
        by_chosen, by_rejected = _ranked(chosen, names), _ranked(rejected, names)
        found = zip(by_chosen, by_rejected, strict=True)
        return {
            key: value
            for one, other in found
            for key, value in (
                (f"rejected.{names[one]}", rejected[other]),
                (f"chosen.{names[other]}", chosen[one]),
            )
        }
    reference = observed["reference"].double().tolist()
    own = [w - v + r for w, v, r in zip(chosen, rejected, reference, strict=True)]
    ranks = zip(_ranked(own, names), _ranked(reference, names), strict=True)
    return {f"reference.{names[one]}": reference[other] for one, other in ranks}


def _couplings(observed: Mapping[str, Tensor]) -> State:
    """What each single response is compared with, if the good ones are transported to the bad ones in order.

    The samples may differ in size: of n good and m bad responses, each good one has m and each bad one n parts of the
    n·m, handed out from the smallest to the largest. ``mass``: the parts that two share, times B/(n·m).
    """
    names = [str(int(key)) for key in observed["pair"].tolist()]
    scored, good = observed["score"].double().tolist(), observed["good"].bool().tolist()
    order = _ranked(scored, names)
    samples = [[place for place in order if good[place] == kind] for kind in (True, False)]
    counts: dict[int, int] = dict.fromkeys(range(len(names)), 0)
    found: State = {}
    left = [[len(samples[1])] * len(samples[0]), [len(samples[0])] * len(samples[1])]
    at = [0, 0]
    while all(samples) and at[0] < len(samples[0]):
        share = min(left[side][at[side]] for side in (0, 1))
        both = [samples[side][at[side]] for side in (0, 1)]
        for place, other in (both, both[::-1]):
            where = f"{names[place]}.{counts[place]}"
            found[f"partner.{where}"] = scored[other]
            found[f"mass.{where}"] = share * len(names) / (len(samples[0]) * len(samples[1]))
            counts[place] += 1
        for side in (0, 1):
            left[side][at[side]] -= share
            at[side] += left[side][at[side]] == 0
    return found | {f"partners.{name}": float(counts[place]) for place, name in enumerate(names)}


def _ranked(values: Sequence[float], names: Sequence[str]) -> list[int]:
    return sorted(range(len(values)), key=lambda place: (values[place], names[place]))


def kept(gap: Tensor, lot: Tensor, statistics: Mapping[str, float]) -> Tensor:
    """ω of β-DPO, [B]: 0 for pairs left out; the others are scaled up so that the batch mean is the mean over them."""
    if statistics["threshold"] == -math.inf:
        return torch.ones_like(gap)
    keys = _keys(gap, lot, statistics["gap_mean"], statistics["gap_std"])
    return (keys >= statistics["threshold"]).to(gap.dtype) / statistics["share"]


def _observe_unpaired(batch: UnpairedBatch, loss: Formula) -> Observed:
    (score,) = scores((batch.responses,), loss)
    found = {"score": score}
    if batch.mismatched is not None:
        (found["mismatched"],) = scores((batch.mismatched,), loss)
    if isinstance(loss.margin, SortedMargin):
        found |= {"pair": keys_of(batch), "good": batch.desirable.to(score.dtype)}
    return found


def _baselines(observed: Mapping[str, Tensor]) -> State:
    """z0 = max(0, mean log-ratio of mismatched responses), KTO (arXiv:2402.01306, equation 8).

    For pairs, each side uses the mean of the other side, as in the first code for pairs.
    """
    if "score" in observed:
        mean = _mean(observed["mismatched"]) if "mismatched" in observed else 0.0
        return {"baseline_chosen": max(0.0, mean), "baseline_rejected": max(0.0, mean)}
    return {
        "baseline_chosen": max(0.0, _mean(observed["score_rejected"])),
        "baseline_rejected": max(0.0, _mean(observed["score_chosen"])),
    }


def _running_reward(observed: Mapping[str, Tensor], state: Mapping[str, float], beta: float) -> State:
    """Sum and count of all rewards β s so far (BCO, arXiv:2404.04656: δ is their mean)."""
    parts = [observed[name] for name in ("score_chosen", "score_rejected", "score") if name in observed]
    total = sum(beta * float(part.double().sum()) for part in parts)
    count = sum(part.numel() for part in parts)
    return {
        "reward_sum": state.get("reward_sum", 0.0) + total,
        "reward_count": state.get("reward_count", 0.0) + count,
    }


def _running_gap(gap: Tensor, state: Mapping[str, float], momentum: float) -> State:
    """Mean and deviation of log-ratio differences over the batches so far, weighted by ``momentum`` for each later one.

    They come from running moments, not from the batches' deviations: in the first batch of a round, policy and
    reference are equal and all differences 0, which does not predict the spread of later pairs. Moving sums are
    divided by their weights, so that they do not start at 0 either. The authors' code of α-DPO and β-DPO departs from
    this: it averages the batches' means and unbiased deviations, from 0 (β-DPO; and α-DPO, arXiv:2410.10148).
    """
    found = {"gap_weight": 1.0, "gap_sum": _mean(gap), "gap_square": _mean(gap.double().square())}
    for name, value in found.items():
        found[name] = momentum * state.get(name, 0.0) + (1 - momentum) * value
    mean = found["gap_sum"] / found["gap_weight"]
    variance = found["gap_square"] / found["gap_weight"] - mean**2
    return {**found, "gap_mean": mean, "gap_std": math.sqrt(max(variance, 0.0))}


def _batch_scale(observed: Mapping[str, Tensor], running: Mapping[str, float], scale: BatchScale, beta: float) -> State:
    """β's factor 1 + α (mean − running mean), which keeps β at 0.001 or more, and the threshold of kept pairs.

    β-DPO, arXiv:2407.08639: pairs are kept without replacement, with weights that fall like a normal density with the
    distance of their log-ratio difference from the running mean. The kept pairs stand for all.
    """
    mean, deviation = running["gap_mean"], running["gap_std"]
    factor = max(1 + scale.alpha * (_mean(observed["gap"]) - mean), SMALLEST_BETA / beta)
    keys = _keys(observed["gap"], observed["lot"], mean, deviation).sort().values
    left_out = min(int(scale.drop * len(keys)), len(keys) - 1)
    # Between two keys, so that rounding in another batch shape does not move a pair across.
    threshold = -math.inf if left_out == 0 else float(keys[left_out - 1] + keys[left_out]) / 2
    share = (len(keys) - left_out) / len(keys)
    return {"scale": factor, "threshold": threshold, "share": share, "gap_mean": mean, "gap_std": deviation}


def _keys(gap: Tensor, lot: Tensor, mean: float, deviation: float) -> Tensor:
    """−log(−log lot^(1/w)), [n]: the pairs with the largest keys are a weighted draw without replacement."""
    distance = (gap.detach().double() - mean) / max(deviation, 1e-6)
    log_weight = -0.5 * distance.square()
    return log_weight - (-lot.double().log()).log()


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
