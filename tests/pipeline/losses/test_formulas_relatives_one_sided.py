"""Relatives with one-sided terms, or with a term beside the pair, against formulas written out in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.losses import PairBatch, UnpairedBatch, load_preset
from tests.support.loss_batches import assert_same, random_pairs, random_unpaired
from tests.support.plain_responses import Response, each_pair, neg_log_sigmoid, pairs, responses, sigma, singles, value


def test_nca_on_pairs() -> None:
    batch = random_pairs()
    for beta, loss in ((0.01, load_preset("nca")), (0.7, load_preset("nca", beta=0.7))):
        rewards = [(beta * w.h, beta * v.h) for w, v in pairs(batch)]
        expected = [neg_log_sigmoid(w) + 0.5 * neg_log_sigmoid(-w) + 0.5 * neg_log_sigmoid(-v) for w, v in rewards]
        assert_same(loss(batch).per_pair, torch.stack(expected), batch)


@pytest.mark.parametrize("beta", [None, 0.8])
def test_apo_zero_and_apo_down(beta: float | None) -> None:
    overrides = {} if beta is None else {"beta": beta}
    b = beta or 0.1
    batch = random_pairs(3)
    zero = each_pair(lambda w, v: sigma(-b * w.h) + sigma(b * v.h), batch)
    assert_same(load_preset("apo_zero", **overrides)(batch).per_pair, zero, batch)
    down = each_pair(lambda w, v: sigma(b * w.h) + sigma(-b * (w.h - v.h)), batch)
    assert_same(load_preset("apo_down", **overrides)(batch).per_pair, down, batch)


@pytest.mark.parametrize("beta", [None, 0.3])
@pytest.mark.parametrize("both", [True, False])
def test_sppo_regresses_each_log_ratio_on_its_probability_of_a_win(beta: float | None, both: bool) -> None:
    batch = random_pairs(4)
    if not both:
        batch = replace(batch, win_probability_rejected=None)
    assert batch.win_probability is not None
    wins = batch.win_probability.tolist()
    losses = (
        [1 - p for p in wins] if batch.win_probability_rejected is None else batch.win_probability_rejected.tolist()
    )
    b = beta or 0.001
    expected = torch.stack(
        [
            (w.h - (p_w - 0.5) / b) ** 2 + (v.h - (p_v - 0.5) / b) ** 2
            for (w, v), p_w, p_v in zip(pairs(batch), wins, losses, strict=True)
        ]
    )
    loss = load_preset("sppo", **({} if beta is None else {"beta": beta}))
    assert_same(loss(batch).per_pair, expected, batch)


def test_cal_dpo() -> None:
    def formula(w: Response, v: Response, target: float, half: float) -> Tensor:
        return neg_log_sigmoid(w.h - v.h) + half * (w.h - target) ** 2 + half * (v.h + target) ** 2

    batch = random_pairs(5)
    expected = each_pair(lambda w, v: formula(w, v, 1 / (2 * 0.001), 0.5), batch)
    assert_same(load_preset("cal_dpo")(batch).per_pair, expected, batch)
    terms = [
        {"coefficient": 1.0, side: 1.0, "target": target, "link": "squared_error"}
        for side, target in (("chosen", 2.0), ("rejected", -2.0))
    ]
    expected = each_pair(lambda w, v: formula(w, v, 1 / (2 * 0.25), 1.0), batch)
    assert_same(load_preset("cal_dpo", terms=terms)(batch).per_pair, expected, batch)


@pytest.mark.parametrize(("alpha", "beta"), [(None, None), (0.3, 0.6)])
def test_xpo_lowers_responses_of_the_reference(alpha: float | None, beta: float | None) -> None:
    batch = random_pairs(6)
    assert batch.calibration is not None
    a, b = alpha or 1e-5, beta or 0.1
    dpo = each_pair(lambda w, v: neg_log_sigmoid(b * (w.h - v.h)), batch)
    optimism = torch.stack([y.logp for y in responses(batch.calibration)])
    overrides = {} if alpha is None else {"alpha": alpha, "beta": beta}
    assert_same(load_preset("xpo", **overrides)(batch).per_pair, dpo + a * optimism, batch)


# ------------------------------------------------------------------------------------------- KTO and BCO


def kto_terms(desirable: float, undesirable: float) -> list[dict[str, object]]:
    return [
        {"coefficient": desirable, "chosen": 1.0, "target": "baseline", "link": "sigmoid"},
        {"coefficient": undesirable, "rejected": -1.0, "target": "baseline", "link": "sigmoid"},
    ]


def kto_pairs(batch: PairBatch, beta: float, l_d: float, l_u: float) -> Tensor:
    """kto_pair: the reference point of one side is the mean log-ratio of the other."""
    rows = [(w.h, v.h) for w, v in pairs(batch)]
    z_w = max(0.0, sum(value(v) for _, v in rows) / len(rows))
    z_v = max(0.0, sum(value(w) for w, _ in rows) / len(rows))
    return torch.stack(
        [l_d * (1 - sigma(beta * (w - z_w))) + l_u * (1 - sigma(beta * (z_v - v))) for w, v in rows],
    )


def kto_singles(batch: UnpairedBatch, beta: float, l_d: float, l_u: float) -> Tensor:
    mismatched = [value(y.h) for y in responses(batch.mismatched)] if batch.mismatched is not None else [0.0]
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    return torch.stack(
        [
            l_d * (1 - sigma(beta * (y.h - z0))) if good else l_u * (1 - sigma(beta * (z0 - y.h)))
            for y, good in singles(batch)
        ]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "l_d", "l_u"), [(0.1, 1.0, 1.0), (0.9, 1.33, 0.7)])
def test_kto(seed: int, beta: float, l_d: float, l_u: float) -> None:
    loss = load_preset("kto") if beta == 0.1 else load_preset("kto", beta=beta, terms=kto_terms(l_d, l_u))
    batch, single = random_pairs(seed), random_unpaired(seed)
    assert_same(loss(batch).per_pair, kto_pairs(batch, beta, l_d, l_u), batch)
    assert_same(loss(single).per_pair, kto_singles(single, beta, l_d, l_u), single)
    alone = replace(single, mismatched=None)
    assert_same(loss(alone).per_pair, kto_singles(alone, beta, l_d, l_u), alone)


def test_the_seeds_above_try_reference_points_at_and_above_zero() -> None:
    means = [torch.stack([y.h for y in responses(random_unpaired(seed).mismatched)]).mean() for seed in range(4)]  # type: ignore[arg-type]
    assert min(means) < 0 < max(means)


@pytest.mark.parametrize("beta", [None, 0.5])
def test_bco_shifts_rewards_by_their_mean(beta: float | None) -> None:
    b = beta or 0.01
    loss = load_preset("bco", **({} if beta is None else {"beta": beta}))
    batch = random_pairs(7)
    rewards = [(b * w.h, b * v.h) for w, v in pairs(batch)]
    delta = sum(value(w) + value(v) for w, v in rewards) / (2 * len(rewards))
    expected = torch.stack([neg_log_sigmoid(w - delta) + neg_log_sigmoid(-(v - delta)) for w, v in rewards])
    assert_same(loss(batch).per_pair, expected, batch)
    single = random_unpaired(8)
    own = [(b * y.h, good) for y, good in singles(single)]
    delta = sum(value(r) for r, _ in own) / len(own)
    expected = torch.stack([neg_log_sigmoid(r - delta) if good else neg_log_sigmoid(-(r - delta)) for r, good in own])
    assert_same(loss(single).per_pair, expected, single)
