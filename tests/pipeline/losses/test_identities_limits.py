"""Losses that are another one up to a term, a factor, a constant or a limit; value and gradient, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.losses import GroupBatch, PairBatch, Side, UnpairedBatch, load_preset
from tests.support.loss_batches import assert_same, random_groups, random_pairs, random_unpaired, value_and_gradient
from tests.support.plain_responses import each_pair, neg_log_sigmoid, responses


def both(batch: PairBatch) -> tuple[Side, Side]:
    assert batch.rejected is not None
    return batch.chosen, batch.rejected


def measured_from(batch: PairBatch, shift: float) -> PairBatch:
    """The same policy, every log-ratio ``shift`` a token."""
    chosen, rejected = (replace(side, reference=side.policy.detach() - shift) for side in both(batch))
    return replace(batch, chosen=chosen, rejected=rejected)


def test_tdpo2_with_kl_1_has_the_value_of_tdpo1_and_no_gradient_through_the_chosen_kl() -> None:
    batch = random_pairs(2)
    one = value_and_gradient(load_preset("tdpo1")(batch).per_pair, batch)
    two = value_and_gradient(load_preset("tdpo2", kl=1.0)(batch).per_pair, batch)
    torch.testing.assert_close(one[0], two[0], rtol=1e-12, atol=0)
    for name, slope in one[1].items():
        if name == "chosen.kl":
            assert (slope[batch.chosen.mask] < 0).all() and (two[1][name] == 0).all()
        else:
            torch.testing.assert_close(slope, two[1][name], rtol=1e-12, atol=0)


def test_rpo_bwd_is_dpo_with_a_soft_label_less_its_entropy() -> None:
    batch = random_pairs(3)
    assert batch.reward_chosen is not None and batch.reward_rejected is not None
    p = torch.sigmoid(1.7 * (batch.reward_chosen - batch.reward_rejected))
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    soft = load_preset("dpo", beta=0.4)(replace(batch, soft_label=p)).per_pair
    assert_same(load_preset("rpo_bwd", beta=0.4, eta=1.7)(batch).per_pair, soft - entropy, batch)


def test_discopop_at_a_high_temperature_is_the_mean_of_logistic_and_exponential() -> None:
    batch = random_pairs(4)
    parts = [load_preset(name, beta=0.6)(batch).per_pair for name in ("dpo", "gpo_exponential")]
    ours = load_preset("discopop", beta=0.6, tau=1e9)(batch).per_pair
    assert_same(ours, (parts[0] + parts[1]) / 2, batch, rtol=1e-7, atol=1e-8)


def test_cal_dpo_is_dpo_and_half_of_sppo_with_certain_wins() -> None:
    batch = random_pairs(5)
    ones = torch.ones(len(batch.chosen.mask), dtype=torch.float64)
    batch = replace(batch, win_probability=ones, win_probability_rejected=None)
    expected = load_preset("dpo", beta=1.0)(batch).per_pair + 0.5 * load_preset("sppo", beta=0.001)(batch).per_pair
    assert_same(load_preset("cal_dpo")(batch).per_pair, expected, batch)


def test_apo_zero_is_kto_where_the_reference_point_is_0() -> None:
    below = measured_from(random_pairs(6), -0.4)
    assert_same(load_preset("kto")(below).per_pair, load_preset("apo_zero")(below).per_pair, below)
    single = replace(random_unpaired(6), mismatched=None)
    assert_same(load_preset("kto")(single).per_pair, load_preset("apo_zero")(single).per_pair, single)
    above = measured_from(random_pairs(6), 0.4)
    assert not torch.allclose(load_preset("kto")(above).per_pair, load_preset("apo_zero")(above).per_pair)


def test_marked_responses_add_up_to_pairs() -> None:
    """The chosen one alone and the rejected one alone give the terms whose sum the pair has."""
    batch = random_pairs(7)
    good = torch.ones(len(batch.chosen.mask), dtype=torch.bool)
    chosen, rejected = both(batch)
    for name in ("apo_zero", "nca"):
        parts = [
            load_preset(name)(UnpairedBatch(responses=side, desirable=mark)).per_pair
            for side, mark in ((chosen, good), (rejected, ~good))
        ]
        assert_same(parts[0] + parts[1], load_preset(name)(batch).per_pair, batch)


# ------------------------------------------------------------------------------------------- priors


def test_apo_accelerated_at_0_is_dpo_against_the_newest_checkpoint() -> None:
    batch = random_pairs(8, references=2)
    newest = [replace(side, reference=side.reference[0]) for side in both(batch) if side.reference is not None]
    dpo = load_preset("dpo")(replace(batch, chosen=newest[0], rejected=newest[1])).per_pair
    assert_same(load_preset("apo_accelerated", **{"prior.alpha": 0.0})(batch).per_pair, dpo, batch)
    expected = each_pair(lambda w, v: neg_log_sigmoid(0.1 * (w.h - v.h)), extrapolated(batch, 0.3))
    assert_same(load_preset("apo_accelerated")(batch).per_pair, expected, batch)


def extrapolated(batch: PairBatch, alpha: float) -> PairBatch:
    def change(side: Side) -> Side:
        assert side.reference is not None
        return replace(side, reference=(1 + alpha) * side.reference[0] - alpha * side.reference[1])

    chosen, rejected = both(batch)
    return replace(batch, chosen=change(chosen), rejected=change(rejected))


@pytest.mark.parametrize("name", ["apo_accelerated", "dpo", "ipo", "rso_hinge", "rpo_sq", "focalpo", "exo"])
def test_what_both_priors_share_cancels(name: str) -> None:
    """The normaliser of an extrapolated reference, any f(x): it stands at both responses of a prompt."""
    loss = load_preset(name)
    batch = random_pairs(9, references=loss.needs.references)
    normaliser = torch.linspace(-4.0, 7.0, len(batch.chosen.mask), dtype=torch.float64)

    def shifted(side: Side) -> Side:
        assert side.reference is not None
        first = side.mask & (side.mask.cumsum(1) == 1)
        return replace(side, reference=side.reference + torch.where(first, normaliser.unsqueeze(1), 0.0))

    moved = replace(batch, chosen=shifted(both(batch)[0]), rejected=shifted(both(batch)[1]))
    assert_same(loss(moved).per_pair, loss(batch).per_pair, batch)


# ------------------------------------------------------------------------------------------- shapes


def test_f_dpo_with_alpha_towards_0_is_dpo_and_towards_1_the_forward_kl() -> None:
    batch = random_pairs(10)
    for alpha, same in ((1e-6, load_preset("dpo")), (1 - 1e-9, load_preset("f_dpo", divergence="forward_kl"))):
        ours = load_preset("f_dpo", divergence="alpha", alpha=alpha)(batch).per_pair
        assert_same(ours, same(batch).per_pair, batch, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("coefficient", [0.5, 0.2])
def test_f_dpo_has_trls_coefficient_at_1_less_alpha(coefficient: float) -> None:
    batch = random_pairs(11)

    def slope(h: torch.Tensor) -> torch.Tensor:
        return torch.exp(h) ** (coefficient - 1) / (coefficient - 1)

    expected = each_pair(lambda w, v: neg_log_sigmoid(0.3 * (slope(w.h) - slope(v.h))), batch)
    ours = load_preset("f_dpo", beta=0.3, divergence="alpha", alpha=1 - coefficient)(batch).per_pair
    assert_same(ours, expected, batch)


@pytest.mark.parametrize("name", ["minordpo", "dpop"])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_shapes_with_a_kink_are_dpo_above_it_and_at_it(name: str, shift: float) -> None:
    """At the first step every log-ratio is 0, on the kink: the gradient there must be that of DPO."""
    batch = measured_from(random_pairs(12), shift)
    assert_same(load_preset(name)(batch).per_pair, load_preset("dpo")(batch).per_pair, batch)


def test_simper_stays_within_1() -> None:
    loss = load_preset("simper")
    for spread in (1e-9, 1.0, 1e4):
        batch = random_pairs(13)
        chosen, rejected = (replace(side, policy=spread * side.policy.detach()) for side in both(batch))
        for one, other in ((chosen, rejected), (rejected, chosen)):
            per_pair = loss(PairBatch(chosen=one, rejected=other)).per_pair
            assert ((per_pair >= -1) & (per_pair <= 1)).all()
    sure, unlikely = (Side(policy=torch.full((1, 2), p), mask=torch.ones(1, 2).bool()) for p in (-1e-6, -50.0))
    assert loss(PairBatch(chosen=sure, rejected=unlikely)).per_pair.item() == pytest.approx(-1, abs=1e-5)
    assert loss(PairBatch(chosen=unlikely, rejected=sure)).per_pair.item() == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------- VPO and labels


def test_vpo_raises_calibration_responses_offline_and_lowers_them_online() -> None:
    batch = random_pairs(14)
    assert batch.calibration is not None
    dpo = load_preset("dpo", beta=0.2)(batch).per_pair
    ratio = torch.stack([y.h for y in responses(batch.calibration)])
    online = load_preset("vpo_online", beta=0.2, alpha=3.0)(batch).per_pair
    assert_same(online, dpo + 0.6 * ratio, batch)
    offline = load_preset("vpo_offline", beta=0.2, alpha=3.0, calibration={"source": "samples"})(batch).per_pair
    assert_same(offline, dpo - 0.6 * ratio, batch)
    for per_pair, sign in ((online, 1), (offline, -1)):
        slope = torch.autograd.grad(per_pair.sum(), batch.calibration.policy, retain_graph=True)[0]
        assert (slope[batch.calibration.mask] == pytest.approx(sign * 0.6)) and (
            slope[~batch.calibration.mask] == 0
        ).all()


def test_vpo_offline_is_dpo_with_the_likelihood_of_the_chosen_response() -> None:
    batch = random_pairs(15)
    anchored = load_preset("dpo_sft", beta=0.2, nll=0.6, nll_aggregate="sum")(batch).per_pair
    reference = torch.stack([y.q.sum() for y in responses(batch.chosen)])
    assert_same(load_preset("vpo_offline", beta=0.2, alpha=3.0)(batch).per_pair, anchored + 0.6 * reference, batch)


def test_vpo_online_is_xpo_up_to_the_reference() -> None:
    batch = random_pairs(16)
    assert batch.calibration is not None
    reference = torch.stack([y.q.sum() for y in responses(batch.calibration)])
    vpo = load_preset("vpo_online", beta=0.2, alpha=3.0)(batch).per_pair
    assert_same(load_preset("xpo", beta=0.2, alpha=0.6)(batch).per_pair, vpo + 0.6 * reference, batch)


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_cdpo_is_least_where_the_policy_is_as_sure_as_the_label(epsilon: float) -> None:
    z = math.log((1 - epsilon) / epsilon)
    policy = torch.tensor([[z / 0.5]], dtype=torch.float64, requires_grad=True)
    zero, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    batch = PairBatch(
        chosen=Side(policy=policy, mask=mask, reference=zero), rejected=Side(policy=zero, mask=mask, reference=zero)
    )
    loss = load_preset("cdpo", beta=0.5, epsilon=epsilon)(batch).per_pair
    assert torch.autograd.grad(loss.sum(), policy)[0].item() == pytest.approx(0, abs=1e-15)
    entropy = -epsilon * math.log(epsilon) - (1 - epsilon) * math.log(1 - epsilon)
    assert loss.item() == pytest.approx(entropy, rel=1e-14)


# ------------------------------------------------------------------------------------------- lists


LISTS = ("rpo_sqloo", "rpo_list_bwd", "rpo_list_fwd", "infonca", "nca_list", "rrhf")


@pytest.mark.parametrize("name", LISTS)
def test_two_responses_are_a_pair(name: str) -> None:
    group = random_groups(17, responses=2)
    chosen, rejected = group.responses
    pair = PairBatch(
        chosen=chosen, rejected=rejected, reward_chosen=group.rewards[:, 0], reward_rejected=group.rewards[:, 1]
    )
    assert_same(load_preset(name)(group).per_pair, load_preset(name)(pair).per_pair, group)


@pytest.mark.parametrize("name", LISTS)
def test_the_order_of_the_responses_is_no_matter(name: str) -> None:
    group = random_groups(18)
    turned = GroupBatch(responses=group.responses[::-1], rewards=group.rewards.flip(1))
    assert_same(load_preset(name)(turned).per_pair, load_preset(name)(group).per_pair, group)


def test_infonca_without_rewards_is_dpo() -> None:
    batch = replace(random_pairs(19), reward_chosen=None, reward_rejected=None)
    assert_same(load_preset("infonca", beta=0.1)(batch).per_pair, load_preset("dpo")(batch).per_pair, batch)
