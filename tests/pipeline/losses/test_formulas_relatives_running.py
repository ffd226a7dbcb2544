"""β-DPO and α-DPO, which follow statistics over batches, against their formulas over two batches in a row."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.losses import Loss, PairBatch, Side, load_preset
from tests.support.loss_batches import assert_same, random_pairs
from tests.support.plain_responses import Response, each_pair, neg_log_sigmoid, pairs, value


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def deviation(numbers: list[float]) -> float:
    return math.sqrt(mean([(number - mean(numbers)) ** 2 for number in numbers]))


def after(loss: Loss, *batches: PairBatch) -> dict[str, float]:
    """The statistics of the last batch, when the others came before it."""
    state: dict[str, float] = {}
    statistics: dict[str, float] = {}
    for batch in batches:
        statistics, state = loss.summarise(loss.observe(batch), state)
    return statistics


def differences(batch: PairBatch) -> list[float]:
    return [value(w.h - v.h) for w, v in pairs(batch)]


# ------------------------------------------------------------------------------------------- β-DPO


@pytest.mark.parametrize(("beta", "alpha"), [(None, None), (0.5, 0.2)])
def test_beta_dpo_scales_beta_by_how_far_the_batch_is_from_those_before(
    beta: float | None, alpha: float | None
) -> None:
    overrides = {} if beta is None else {"beta": beta, "alpha": alpha}
    b, a = beta or 0.1, alpha or 0.6
    loss = load_preset("beta_dpo", drop=0.0, **overrides)
    first, second, third = (random_pairs(seed) for seed in (0, 1, 2))
    assert_same(loss(first).per_pair, each_pair(lambda w, v: neg_log_sigmoid(b * (w.h - v.h)), first), first)
    means = [mean(differences(batch)) for batch in (first, second, third)]
    # The moving mean of two batches, whose weights 0.9 and 1 are made to sum to 1.
    both = (0.9 * means[0] + means[1]) / 1.9
    for batches, running in (((first, second), means[0]), ((first, second, third), both)):
        last = batches[-1]
        scaled = b * (1 + a * (mean(differences(last)) - running))
        assert scaled > 1e-3
        expected = each_pair(lambda w, v, scaled=scaled: neg_log_sigmoid(scaled * (w.h - v.h)), last)  # type: ignore[misc]
        assert_same(loss(last, after(loss, *batches)).per_pair, expected, last)


def test_beta_dpo_keeps_beta_at_a_thousandth_or_more() -> None:
    loss = load_preset("beta_dpo", drop=0.0, alpha=1e3)
    high, low = sorted((random_pairs(0), random_pairs(1)), key=lambda batch: -mean(differences(batch)))
    expected = each_pair(lambda w, v: neg_log_sigmoid(1e-3 * (w.h - v.h)), low)
    assert_same(loss(low, after(loss, high, low)).per_pair, expected, low)


def test_beta_dpo_leaves_a_share_out_and_the_others_count_for_it() -> None:
    batch = random_pairs(3)
    whole = load_preset("beta_dpo", drop=0.0)(batch).per_pair
    halved = load_preset("beta_dpo", drop=0.5)(batch).per_pair
    kept = halved.detach() != 0
    assert int(kept.sum()) == 3
    assert_same(halved, torch.where(kept, 2 * whole, torch.zeros_like(whole)), batch)


def test_beta_dpo_draws_by_the_seeds_of_the_pairs() -> None:
    loss, batch = load_preset("beta_dpo", drop=0.5), random_pairs(3)
    assert batch.seeds is not None
    again = loss(replace(batch, seeds=batch.seeds.clone())).per_pair
    torch.testing.assert_close(loss(batch).per_pair, again, rtol=0, atol=0)
    drawn = {tuple((loss(replace(batch, seeds=batch.seeds + n)).per_pair != 0).tolist()) for n in range(20)}
    assert len(drawn) > 3


def test_beta_dpo_leaves_out_with_the_weight_of_a_normal_density() -> None:
    """One of two pairs is kept: pair i with probability w_i / (w_0 + w_1), w = exp(−½ ((D − M)/S)²)."""
    loss = load_preset("beta_dpo", drop=0.5)
    before = random_pairs(4)
    batch = random_pairs(20, chosen=(3, 2), rejected=(2, 2), spread=1.5)
    gaps = differences(before)
    weights = [math.exp(-0.5 * ((gap - mean(gaps)) / deviation(gaps)) ** 2) for gap in differences(batch)]
    share = weights[0] / sum(weights)
    assert 0.1 < abs(share - 0.5) < 0.4
    draws = 1500
    kept = 0
    for seed in range(draws):
        drawn = replace(batch, seeds=torch.tensor([2 * seed, 2 * seed + 1]))
        kept += int(loss(drawn, after(loss, before, drawn)).per_pair[0] != 0)
    assert abs(kept / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


# ------------------------------------------------------------------------------------------- α-DPO


def mean_gap(w: Response, v: Response) -> Tensor:
    """Difference of mean log-ratios, constant."""
    return (w.h / w.n - v.h / v.n).detach()


@pytest.mark.parametrize("given", [{}, {"beta": 1.2, "gamma": 0.7, "margin.alpha": 0.9}])
def test_alpha_dpo_moves_the_margin_by_the_normalised_gap(given: dict[str, float]) -> None:
    loss = load_preset("alpha_dpo", **given)
    beta, gamma, alpha = given.get("beta", 2.5), given.get("gamma", 0.4), given.get("margin.alpha", 0.1)
    first, second, third = (random_pairs(seed) for seed in (0, 1, 2))
    gaps = [[value(mean_gap(w, v)) for w, v in pairs(batch)] for batch in (first, second, third)]
    centre, spread = mean(gaps[0]), deviation(gaps[0])

    def formula(w: Response, v: Response) -> Tensor:
        return neg_log_sigmoid(beta * (w.mean - v.mean - (gamma + alpha * (mean_gap(w, v) - centre) / spread)))

    assert_same(loss(first).per_pair, each_pair(formula, first), first)
    for last, batches in ((second, (first, second)), (third, (first, second, third))):
        seen = gaps[: len(batches)]
        weights = [0.9**age for age in reversed(range(len(seen)))]
        moments = [
            sum(w * mean([gap**power for gap in of_batch]) for w, of_batch in zip(weights, seen, strict=True))
            for power in (1, 2)
        ]
        centre = moments[0] / sum(weights)
        spread = math.sqrt(moments[1] / sum(weights) - centre**2)
        assert_same(loss(last, after(loss, *batches)).per_pair, each_pair(formula, last), last)


# ------------------------------------------------------------------------------------------- BCO, and all of them


def test_bco_takes_the_mean_of_all_rewards_so_far() -> None:
    loss = load_preset("bco", beta=0.5)
    first, second = random_pairs(0), random_pairs(1, chosen=(2, 1), rejected=(3, 1))
    rewards = [value(0.5 * y.h) for batch in (first, second) for pair in pairs(batch) for y in pair]
    delta = mean(rewards)
    expected = each_pair(lambda w, v: neg_log_sigmoid(0.5 * w.h - delta) + neg_log_sigmoid(delta - 0.5 * v.h), second)
    assert_same(loss(second, after(loss, first, second)).per_pair, expected, second)


def some(side: Side, part: slice) -> Side:
    assert side.reference is not None
    return Side(policy=side.policy[part], mask=side.mask[part], reference=side.reference[part])


@pytest.mark.parametrize("name", ["beta_dpo", "alpha_dpo", "bco", "kto"])
def test_statistics_of_parts_are_those_of_the_whole(name: str) -> None:
    loss, batch = load_preset(name), random_pairs(0)
    assert loss.needs.statistics

    def rows(part: slice) -> PairBatch:
        assert batch.rejected is not None and batch.seeds is not None
        chosen, rejected = (some(side, part) for side in (batch.chosen, batch.rejected))
        return PairBatch(chosen=chosen, rejected=rejected, seeds=batch.seeds[part])

    halves = [loss.observe(rows(part)) for part in (slice(0, 2), slice(2, 6))]
    joined = {key: torch.cat([half[key] for half in halves]) for key in halves[0]}
    statistics = loss.summarise(joined, {})[0]
    assert statistics == pytest.approx(loss.summarise(loss.observe(batch), {})[0], rel=1e-12)
    parts = torch.cat([loss(rows(part), statistics).per_pair for part in (slice(0, 2), slice(2, 6))])
    torch.testing.assert_close(parts, loss(batch).per_pair)


def test_a_first_batch_without_differences_does_not_make_later_ones_look_far_apart() -> None:
    """Every round starts where policy and reference are one, so the first deviation is 0."""
    loss = load_preset("alpha_dpo")
    still, moved = random_pairs(0, at_reference=True), random_pairs(1)
    gaps = [value(mean_gap(w, v)) for w, v in pairs(moved)]
    statistics = after(loss, still, moved)
    assert statistics["gap_std"] > 0.5 * deviation(gaps)
