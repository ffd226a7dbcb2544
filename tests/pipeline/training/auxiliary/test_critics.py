"""GANPO's critics: what they score, which way they learn, and that no cut of the batch changes them."""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.config.loss.terms import Adversary
from pipeline.training.auxiliary.critics import Critics, CriticScores, PairStates

WIDTH = 8
SETTINGS = Adversary(hidden_size=32, layers=1, heads=2)


def states(seed: int, rows: int = 3, length: int = 4, shift: float = 0.0) -> PairStates:
    draw = torch.Generator().manual_seed(seed)

    def side() -> torch.Tensor:
        return shift + torch.randn(rows, length, WIDTH, generator=draw)

    mask = torch.arange(length) < torch.tensor([[length], [1], [2]])[:rows]
    return PairStates(side(), mask, side(), mask.flip(0))


def critics() -> Critics:
    made = Critics(WIDTH, SETTINGS, seed=1)
    made.update_means(torch.tensor([[0.1, 0.4, -0.3], [0.2, -0.1, 0.5]]))
    return made


def test_padding_and_prompt_are_not_pooled() -> None:
    critic, pair = Critics(WIDTH, SETTINGS).of_chosen, states(0)
    spoiled = pair.chosen.masked_fill(~pair.chosen_mask.unsqueeze(-1), math.nan)
    torch.testing.assert_close(critic(spoiled, pair.chosen_mask), critic(pair.chosen, pair.chosen_mask))
    alone = critic(pair.chosen[2:, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(critic(pair.chosen, pair.chosen_mask)[2:], alone)
    moved = torch.cat([torch.full((1, 3, WIDTH), 9.0), pair.chosen[2:, :2]], dim=1)
    torch.testing.assert_close(critic(moved, torch.tensor([[False] * 3 + [True] * 2])), alone)


def test_outer_layers_have_spectral_norm_one_whatever_the_number_of_passes() -> None:
    critic, pair = Critics(WIDTH, SETTINGS).of_chosen, states(0)
    for layer in (critic.first, critic.pooled, critic.last):
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=0.05)
    before = critic(pair.chosen, pair.chosen_mask)
    assert torch.equal(critic.train()(pair.chosen, pair.chosen_mask), before)
    with torch.no_grad():
        critic.pooled.parametrizations.weight.original.add_(torch.randn(32, 32))
    for _ in range(30):
        critic.renormalise()
    assert float(torch.linalg.matrix_norm(critic.pooled.weight.detach(), 2)) == pytest.approx(1, abs=0.01)


def test_the_policy_term_is_the_score_above_the_mean_of_the_reference() -> None:
    made, pair = critics(), states(0)
    chosen, rejected = made.policy_term(pair)
    torch.testing.assert_close(chosen, made.of_chosen(pair.chosen, pair.chosen_mask) - 0.4)
    torch.testing.assert_close(rejected, made.of_rejected(pair.rejected, pair.rejected_mask) - 0.5)


def test_the_policy_term_moves_hidden_states_and_the_critics_loss_moves_critics() -> None:
    made, pair, reference = critics(), states(0), states(1)
    pair.chosen.requires_grad_()
    pair.rejected.requires_grad_()
    sum(made.policy_term(pair), start=torch.zeros(3)).sum().backward()
    for hidden, mask in ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask)):
        assert hidden.grad is not None
        assert bool((hidden.grad.abs().sum(-1) > 0)[mask].all()) and float(hidden.grad[~mask].abs().sum()) == 0
        hidden.grad = None
    assert all(p.grad is None and p.requires_grad for p in made.parameters())
    made.loss(*made.scores(pair, reference)).sum().backward()
    assert pair.chosen.grad is None and pair.rejected.grad is None
    assert all(p.grad is not None for p in made.parameters())


def bce(logit: float, label: int) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if label else 1 - p)


def test_the_critics_loss_is_the_published_formula() -> None:
    made = critics()
    one = torch.ones(1)
    chosen = CriticScores(policy=0.3 * one, chosen=1.1 * one, rejected=-0.7 * one)
    rejected = CriticScores(policy=-0.2 * one, chosen=0.6 * one, rejected=0.9 * one)
    of_chosen = bce(1.1 - 0.1, 1) + bce(0.3 - 0.4, 0) + bce(0.3 - -0.3, 1) + bce(-0.7 - 0.1, 0)
    of_rejected = bce(0.9 - 0.2, 1) + bce(-0.2 - 0.5, 0) + bce(-0.2 - -0.1, 1) + bce(0.6 - 0.2, 0)
    assert float(made.loss(chosen, rejected)) == pytest.approx((of_chosen + of_rejected) / 4, rel=1e-5)


def test_running_means_start_with_the_first_batch() -> None:
    made = Critics(WIDTH, Adversary(hidden_size=32, layers=1, heads=2, momentum=0.8))
    assert not made.started
    made.update_means(torch.full((2, 3), 2.0))
    assert made.started and torch.equal(made.means, torch.full((2, 3), 2.0))
    made.update_means(torch.full((2, 3), -3.0))
    torch.testing.assert_close(made.means, torch.full((2, 3), 1.0))
    assert torch.equal(made.state_dict()["means"], made.means)


def test_critics_learn_to_tell_policy_from_reference_on_either_side() -> None:
    made = critics()
    policy, reference = states(0, shift=0.5), states(1)
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(60):
        chosen, rejected = made.scores(policy, reference)
        made.loss(chosen, rejected).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        made.renormalise()
        made.update_means(torch.stack([chosen.table().mean(0), rejected.table().mean(0)]))
    of_policy, of_chosen, of_rejected = made.means[0].tolist()
    assert of_chosen > of_policy and of_chosen > of_rejected
    of_policy, of_chosen, of_rejected = made.means[1].tolist()
    assert of_rejected > of_policy and of_rejected > of_chosen


def test_the_seed_alone_decides_and_leaves_other_lots_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, other = Critics(WIDTH, SETTINGS, seed=1), Critics(WIDTH, SETTINGS, seed=2)
    assert torch.equal(torch.rand(2), expected)
    again = Critics(WIDTH, SETTINGS, seed=1).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in first.state_dict().items() if name != "means")
    assert not torch.equal(first.of_chosen.last.weight, other.of_chosen.last.weight)
    assert not torch.equal(first.of_chosen.last.weight, first.of_rejected.last.weight)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="heads: 3 do not divide hidden_size 32"):
        Adversary(hidden_size=32, layers=1, heads=3)
