"""Advantage-induced policy alignment token by token: what it equals elsewhere, and where its minimum lies."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.losses import GroupBatch, Side, load_preset
from tests.support.loss_batches import random_groups

REWARDS = (0.3, -1.1, 0.9, 0.2)


def answers(logps: Tensor) -> GroupBatch:
    """One prompt, four answers of one token each, with the whitened advantages of their rewards; V is 0."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    whitened = (rewards - rewards.mean()) / rewards.std(correction=0)
    token, reference = torch.ones(1, 1, dtype=torch.bool), torch.log(torch.tensor(0.25, dtype=torch.float64))
    sides = tuple(
        Side(
            policy=logps[k].view(1, 1),
            mask=token,
            reference=reference.view(1, 1),
            advantage=whitened[k].view(1, 1),
            returns=rewards[k].view(1, 1),
            token_value=torch.zeros(1, 1, dtype=torch.float64),
        )
        for k in range(4)
    )
    return GroupBatch(responses=sides, rewards=rewards[None] / rewards.std(correction=0))


def test_of_one_prompt_with_answers_of_one_token_it_is_apa() -> None:
    batch = answers(torch.tensor([-0.5, -1.0, -2.0, -3.0], dtype=torch.float64))
    ours = load_preset("apa_token", eta=1.3, value_weight=0.0)(batch).per_pair
    theirs = load_preset("apa", eta=1.3, value="mean")(batch).per_pair
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_table_of_answers_leans_to_the_tilt_and_is_it_up_to_the_dropped_normaliser() -> None:
    # Targets whose exponentials add up to 1 under the reference can be reached: there the minimum is the tilt.
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    tilt = (rewards / rewards.std(correction=0)).log_softmax(0)
    wanted = tilt - torch.log(torch.tensor(0.25, dtype=torch.float64))
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    loss = load_preset("apa_token", eta=1.0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        batch = answers(logits.log_softmax(0))
        sides = [replace(s, advantage=wanted[k].view(1, 1)) for k, s in enumerate(batch.responses)]
        value = loss(replace(batch, responses=tuple(sides))).per_pair.sum()
        value.backward()
        return value

    optimiser.step(closure)
    found = logits.detach().log_softmax(0)
    assert float((tilt.exp() * (tilt - found)).sum()) < 1e-8


def test_its_first_gradient_is_each_token_s_advantage() -> None:
    batch = random_groups(1, responses=3, at_reference=True)
    for form, eta in (("square", 2.0), ("exponential", 0.5)):
        per_pair = load_preset("apa_token", eta=eta, aggregate="sum", **{"head.form": form})(batch).per_pair
        slopes = torch.autograd.grad(per_pair.sum(), [side.policy for side in batch.responses])
        for side, slope in zip(batch.responses, slopes, strict=True):
            assert side.advantage is not None
            # By hand: d/dh (h − ηA)² at h = 0, and d/dh of −e^(ηA) h; each prompt has three responses.
            expected = -2 * eta * side.advantage if form == "square" else -torch.exp(eta * side.advantage)
            torch.testing.assert_close(slope, expected.where(side.mask, 0) / 3, rtol=1e-12, atol=1e-13)


def test_the_value_head_alone_learns_from_the_fit() -> None:
    batch = random_groups(2, responses=3)
    per_pair = load_preset("apa_token", value_weight=2.0)(batch).per_pair
    for side in batch.responses:
        assert side.token_value is not None and side.returns is not None
        (slope,) = torch.autograd.grad(per_pair.sum(), [side.token_value], retain_graph=True)
        error = (side.token_value.detach() - side.returns).where(side.mask, 0)
        torch.testing.assert_close(slope, 2 / 3 * error / side.mask.sum(1, keepdim=True))


def test_the_sizes_of_log_ratio_and_target_are_reported() -> None:
    batch = random_groups(3, responses=3, gaps=True)
    output = load_preset("apa_token", eta=10.0, beta=0.5)(batch)
    ratios, targets = [], []
    assert batch.present is not None
    for row in range(len(batch.rewards)):
        there = [side for k, side in enumerate(batch.responses) if batch.present[row, k]]
        of_row = []
        for side in there:
            assert side.reference is not None and side.advantage is not None
            where = side.mask[row]
            of_row.append(
                [
                    float((side.policy.detach() - side.reference)[row][where].abs().mean()),
                    20 * float(side.advantage[row][where].abs().mean()),
                ]
            )
        ratio, target = torch.tensor(of_row, dtype=torch.float64).mean(0)
        ratios.append(ratio)
        targets.append(target)
    assert float(output.metrics["ratio_per_token"]) == pytest.approx(float(torch.stack(ratios).mean()))
    assert float(output.metrics["target_per_token"]) == pytest.approx(float(torch.stack(targets).mean()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prior": "none"}, "prior: none, but the square of head apa_token needs log-ratios"),
        ({"weights": "decay"}, r"weights: not read by a loss over K responses \(head: apa_token\)"),
        ({"kl": 0.1}, r"kl: not read by a loss over K responses \(head: apa_token\)"),
        ({"gae_lambda": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_it_does_not_read_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_preset("apa_token", **given)


def test_without_a_reference_it_is_weighted_likelihood() -> None:
    loss = load_preset("apa_token", **{"prior": "none", "head.form": "exponential", "eta": 0.5, "value_weight": 0.0})
    assert "reference" not in loss.needs
    batch = random_groups(5, responses=2)
    expected = torch.zeros(len(batch.rewards), dtype=torch.float64)
    for side in batch.responses:
        assert side.advantage is not None
        weighted = (torch.exp(0.5 * side.advantage) * side.policy).where(side.mask, 0)
        expected = expected - weighted.sum(1) / side.mask.sum(1) / 2
    torch.testing.assert_close(loss(batch).per_pair, expected)


def test_what_is_missing_is_named() -> None:
    batch = random_groups(6, responses=2)
    for field in ("advantage", "returns", "token_value"):
        sides = tuple(replace(side, **{field: None}) for side in batch.responses)
        with pytest.raises(ValueError, match=rf"needs {field} of each token \(Side\.{field}\)"):
            load_preset("apa_token")(replace(batch, responses=sides))
