"""Advantage-induced policy alignment over K responses: what it is made of, and where its minimum lies."""

import pytest
import torch
from torch import Tensor

from pipeline.losses import GroupBatch, Side, load_preset
from tests.support.loss_batches import random_groups

# Chances in eighths, so that a group of eight has every answer as often as the reference draws it.
EIGHTHS = (1, 2, 2, 3)
REWARDS = (0.3, -1.1, 0.9, 0.2)
BETA, ETA = 0.7, 1.3


def answers(logits: Tensor) -> GroupBatch:
    """The eight draws of one prompt, of one token each, under a policy of four answers."""
    reference = (torch.tensor(EIGHTHS, dtype=torch.float64) / 8).log()
    drawn = [answer for answer, count in enumerate(EIGHTHS) for _ in range(count)]
    token = torch.ones(1, 1, dtype=torch.bool)
    logps = logits.log_softmax(0)
    sides = tuple(Side(policy=logps[a].view(1, 1), mask=token, reference=reference[a].view(1, 1)) for a in drawn)
    return GroupBatch(responses=sides, rewards=torch.tensor([[REWARDS[a] for a in drawn]], dtype=torch.float64))


def minimum(**settings: object) -> Tensor:
    """log π of the four answers where the loss is smallest."""
    loss = load_preset("apa", **settings)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(answers(logits)).per_pair.sum()
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


def kl(one: Tensor, other: Tensor) -> float:
    return float((one.exp() * (one - other)).sum())


def test_with_the_soft_value_and_all_answers_the_minimum_is_the_exact_tilt() -> None:
    found = minimum(beta=BETA, eta=ETA, value="soft")
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    tilt = ((torch.tensor(EIGHTHS, dtype=torch.float64) / 8).log() + ETA * rewards / BETA).log_softmax(0)
    assert kl(tilt, found) < 1e-4
    assert float(load_preset("apa", beta=BETA, eta=ETA, value="soft")(answers(tilt)).per_pair) < 1e-20


@pytest.mark.parametrize("value", ["mean", "leave_one_out"])
def test_with_the_other_values_it_leans_to_the_tilt_and_is_not_it(value: str) -> None:
    found = minimum(beta=BETA, eta=ETA, value=value)
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    reference = (torch.tensor(EIGHTHS, dtype=torch.float64) / 8).log()
    tilt = (reference + ETA * rewards / BETA).log_softmax(0)
    assert 1e-3 < kl(tilt, found) < 0.5 * kl(tilt, reference)


def test_it_is_rpo_sqloo_plus_a_penalty_on_the_mean_log_ratio() -> None:
    batch = random_groups(3, responses=4)
    count = len(batch.responses)
    apa = load_preset("apa", beta=BETA, eta=ETA, value="mean")(batch).per_pair
    sqloo = load_preset("rpo_sqloo", beta=BETA, eta=ETA)(batch).per_pair
    ratios = torch.stack(
        [torch.where(s.mask, s.policy - s.reference, 0).sum(1) for s in batch.responses if s.reference is not None]
    )
    penalty = count * (BETA * ratios.mean(0)).square()
    torch.testing.assert_close(
        sqloo, 0.5 * (count / (count - 1)) ** 2 * (count * apa - penalty), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("value", ["mean", "leave_one_out", "soft"])
def test_its_first_gradient_is_reinforce_with_the_value_as_baseline(value: str) -> None:
    batch = random_groups(4, responses=3, at_reference=True)
    per_pair = load_preset("apa", beta=BETA, eta=ETA, value=value)(batch).per_pair
    slopes = torch.autograd.grad(per_pair.sum(), [side.policy for side in batch.responses])
    rewards = batch.rewards
    baseline = {
        "mean": rewards.mean(1, keepdim=True),
        "leave_one_out": (rewards.sum(1, keepdim=True) - rewards) / 2,
        "soft": BETA / ETA * (ETA / BETA * rewards).exp().mean(1, keepdim=True).log(),
    }[value]
    for k, (side, slope) in enumerate(zip(batch.responses, slopes, strict=True)):
        advantage = (rewards - baseline)[:, k : k + 1]
        torch.testing.assert_close(slope, -2 / 3 * BETA * ETA * advantage * side.mask, rtol=1e-10, atol=1e-12)
