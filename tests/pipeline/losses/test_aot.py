"""Alignment via optimal transport: both samples sorted over the whole batch, written out in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.losses import PairBatch, Side, UnpairedBatch, load_preset
from tests.support.loss_batches import assert_same, leaves, pairs_of, random_pairs, random_unpaired, response


def neg_log_sigmoid(z: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-z))


def number(value: Tensor) -> float:
    return float(value.detach())


def paired(batch: PairBatch, beta: float, epsilon: float) -> Tensor:
    """Sum over the ranks."""
    pairs = pairs_of(batch)
    ours = sorted((x.w.p.sum() - x.v.p.sum() for x in pairs), key=number)
    theirs = sorted((x.w.q.sum() - x.v.q.sum() for x in pairs), key=number)
    gaps = [beta * (u - v) for u, v in zip(ours, theirs, strict=True)]
    return torch.stack([(1 - epsilon) * neg_log_sigmoid(z) + epsilon * neg_log_sigmoid(-z) for z in gaps]).sum()


def of_responses(batch: PairBatch, beta: float, epsilon: float) -> Tensor:
    pairs = pairs_of(batch)
    chosen, rejected = (sorted((side(x).h for x in pairs), key=number) for side in (lambda x: x.w, lambda x: x.v))
    gaps = [beta * (w - v) for w, v in zip(chosen, rejected, strict=True)]
    return torch.stack([(1 - epsilon) * neg_log_sigmoid(z) + epsilon * neg_log_sigmoid(-z) for z in gaps]).sum()


@pytest.mark.parametrize(("name", "formula"), [("aot", paired), ("aot_unpaired", of_responses)])
@pytest.mark.parametrize(("beta", "epsilon"), [(0.1, 0.0), (0.7, 0.2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_of_the_batch_are_the_sorted_formula(
    name: str, formula: object, beta: float, epsilon: float, seed: int
) -> None:
    batch = random_pairs(seed)
    loss = load_preset(name, beta=beta, label={"kind": "smoothed", "epsilon": epsilon})
    assert_same(loss(batch).per_pair.sum()[None], formula(batch, beta, epsilon)[None], batch)  # type: ignore[operator]


def test_means_per_token_are_sorted_if_that_is_the_aggregate() -> None:
    batch = random_pairs(2)
    pairs = pairs_of(batch)
    ours = sorted((x.w.p.mean() - x.v.p.mean() for x in pairs), key=number)
    theirs = sorted((x.w.q.mean() - x.v.q.mean() for x in pairs), key=number)
    expected = torch.stack([neg_log_sigmoid(0.5 * (u - v)) for u, v in zip(ours, theirs, strict=True)]).sum()
    assert_same(load_preset("aot", beta=0.5, aggregate="mean")(batch).per_pair.sum()[None], expected[None], batch)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_one_pair_is_dpo_and_several_are_not(name: str) -> None:
    one, several = random_pairs(3, [4], [2]), random_pairs(3)
    assert_same(load_preset(name)(one).per_pair, load_preset("dpo")(one).per_pair, one)
    assert (load_preset(name)(several).per_pair - load_preset("dpo")(several).per_pair).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_ties_are_ordered_by_the_pairs_whatever_their_place(name: str) -> None:
    batch = random_pairs(4, [2] * 5, [2] * 5, at_reference=True)
    assert batch.seeds is not None
    loss = load_preset(name)
    known = loss.summarise(loss.observe(batch), {})[0]
    back = torch.arange(4, -1, -1)
    turned = {key: values[back] for key, values in loss.observe(batch).items()}
    assert loss.summarise(turned, {})[0] == pytest.approx(known, abs=1e-12)


def test_gradients_of_both_samples_reach_their_own_responses() -> None:
    batch = random_pairs(5)
    names = ("chosen.policy", "rejected.policy")
    per_pair = load_preset("aot_unpaired", beta=1.0)(batch).per_pair
    slopes = torch.autograd.grad(per_pair.sum(), [leaves(batch)[name] for name in names])
    assert (slopes[0][batch.chosen.mask] < 0).all()
    assert batch.rejected is not None and (slopes[1][batch.rejected.mask] > 0).all()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prior": "none"}, "prior"),
        ({"prior": {"kind": "reference", "weight": 0.5}}, "prior"),
        ({"weights": "decay"}, "weights"),
        ({"shape": {"kind": "alpha"}}, "shape"),
        ({"aggregate": "power"}, "aggregate"),
        ({"label": "rewards"}, "label"),
        ({"dispersion": {"kind": "entropy"}}, "dispersion"),
    ],
    ids=str,
)
def test_what_the_sorted_scores_do_not_have_is_refused(given: dict[str, object], field: str) -> None:
    with pytest.raises(UserError, match=rf"{field}: the margin sorted compares plain log-ratios over the batch"):
        load_preset("aot", **given)


def test_a_pair_that_was_not_observed_is_not_compared() -> None:
    batch = random_pairs(6)
    loss = load_preset("aot")
    known = loss.summarise(loss.observe(batch), {})[0]
    assert batch.seeds is not None
    with pytest.raises(KeyError):
        loss(replace(batch, seeds=batch.seeds + 1), known)


def marked(seed: int, good: int, bad: int) -> UnpairedBatch:
    """Single responses of differing lengths; the good ones are neither first nor together."""
    batch = random_unpaired(seed, lengths=[1 + (3 * n) % 5 for n in range(good + bad)])
    desirable = torch.tensor([n % 2 == 1 and n // 2 < good for n in range(good + bad)])
    lacking = good - int(desirable.sum())
    desirable[[n for n in range(good + bad) if not desirable[n]][:lacking]] = True
    return replace(batch, desirable=desirable, seeds=torch.arange(good + bad) * 7 + 3)


def transported(batch: UnpairedBatch, beta: float, epsilon: float) -> Tensor:
    """Mean over n·m equal parts: each good response m times, each bad one n times, both in order."""
    found = [response(batch.responses, row).h for row in range(len(batch.desirable))]
    good = sorted((h for h, mark in zip(found, batch.desirable, strict=True) if mark), key=number)
    bad = sorted((h for h, mark in zip(found, batch.desirable, strict=True) if not mark), key=number)
    parts = zip([h for h in good for _ in bad], [h for h in bad for _ in good], strict=True)
    gaps = [beta * (w - v) for w, v in parts]
    return torch.stack([(1 - epsilon) * neg_log_sigmoid(z) + epsilon * neg_log_sigmoid(-z) for z in gaps]).mean()


@pytest.mark.parametrize(("good", "bad"), [(3, 3), (1, 5), (5, 1), (4, 3), (2, 6), (1, 1)])
@pytest.mark.parametrize(("beta", "epsilon"), [(0.1, 0.0), (0.7, 0.2)])
def test_single_responses_are_transported_in_order_whatever_their_numbers(
    good: int, bad: int, beta: float, epsilon: float
) -> None:
    batch = marked(good, good, bad)
    loss = load_preset("aot_unpaired", beta=beta, label={"kind": "smoothed", "epsilon": epsilon})
    assert_same(loss(batch).per_pair.mean()[None], transported(batch, beta, epsilon)[None], batch)


def test_single_responses_of_pairs_are_the_loss_of_the_pairs() -> None:
    pairs = random_pairs(7)
    assert pairs.rejected is not None

    def joined(name: str) -> Tensor:
        width = max(side.mask.shape[1] for side in (pairs.chosen, pairs.rejected))
        sides = [getattr(side, name) for side in (pairs.chosen, pairs.rejected)]
        return torch.cat([torch.nn.functional.pad(v.detach(), (0, width - v.shape[1])) for v in sides])

    side = Side(policy=joined("policy"), mask=joined("mask"), reference=joined("reference"))
    good = torch.arange(2 * len(pairs.chosen.mask)) < len(pairs.chosen.mask)
    singles = UnpairedBatch(responses=side, desirable=good)
    loss = load_preset("aot_unpaired")
    torch.testing.assert_close(loss(singles).per_pair.mean(), loss(pairs).per_pair.mean(), rtol=1e-12, atol=1e-13)


def test_parts_of_a_batch_give_the_loss_and_the_gradient_of_the_whole() -> None:
    batch = marked(8, 3, 4)
    loss = load_preset("aot_unpaired", beta=0.9)
    known = loss.summarise(loss.observe(batch), {})[0]
    policy = batch.responses.policy
    whole = loss(batch, known).per_pair
    (expected,) = torch.autograd.grad(whole.sum(), [policy])
    total, parts = torch.zeros_like(expected), []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 7)):
        inside = Side(
            policy=policy[rows],
            mask=batch.responses.mask[rows],
            reference=batch.responses.reference[rows],  # type: ignore[index]
        )
        part = UnpairedBatch(responses=inside, desirable=batch.desirable[rows], seeds=batch.seeds[rows])  # type: ignore[index]
        found = loss(part, known).per_pair
        parts.append(found)
        total += torch.autograd.grad(found.sum(), [policy])[0]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-13)


def test_responses_of_one_kind_alone_say_nothing() -> None:
    batch = replace(marked(9, 3, 3), desirable=torch.ones(6, dtype=torch.bool))
    per_pair = load_preset("aot_unpaired")(batch).per_pair
    assert per_pair.tolist() == [0.0] * 6
    (slope,) = torch.autograd.grad(per_pair.sum(), [batch.responses.policy])
    assert (slope == 0).all()


@pytest.mark.parametrize(
    "given", [{"compare": "pairs"}, {"nll": 1.0}, {"link": "reverse_kl", "label": "smoothed"}], ids=str
)
def test_single_responses_are_refused_where_the_sorted_samples_are_of_pairs(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="aot_unpaired: this loss compares two responses; it cannot use single ones"):
        load_preset("aot_unpaired", **given)(marked(1, 3, 3))
