"""The study of frontiers, small: what the losses read of the table is right, and so is what is compared."""

import pytest
import torch

from tests.studies import frontiers


@pytest.fixture(scope="module")
def task() -> frontiers.Task:
    return frontiers.task_of(0)


def test_reward_and_kl_of_the_table_are_those_of_samples(task: frontiers.Task) -> None:
    draw = torch.Generator().manual_seed(1)
    policy = (task.start + 0.5 * task.liked).log_softmax(1)
    words = torch.zeros(4000, 1, dtype=torch.int64)
    for _ in range(frontiers.LENGTH):
        words = torch.cat([words, torch.multinomial(policy.exp()[words[:, -1]], 1, generator=draw)], dim=1)
    ratio = (policy - task.start)[words[:, :-1], words[:, 1:]].sum(1)
    assert frontiers.kl(policy, task.start) == pytest.approx(float(ratio.mean()), rel=0.1)
    assert frontiers.reward(policy, task.liked) == pytest.approx(
        float(task.liked[words[:, 1:]].sum(1).mean()), abs=0.15
    )


def test_a_smaller_beta_goes_further_and_gains_what_the_second_labeller_sees(task: frontiers.Task) -> None:
    pairs = frontiers.pairs_of(task, 0)
    policies = [frontiers.trained(frontiers.loss_of("DPO", factor), task, pairs, steps=40) for factor in (1.0, 10.0)]
    kls = [frontiers.kl(policy, task.start) for policy in policies]
    assert kls[0] > 1.5 * kls[1] > 0.3
    assert frontiers.reward(policies[0], task.second) > frontiers.reward(task.start, task.second) + 0.5


def test_the_second_step_has_each_losss_own_gradient(task: frontiers.Task) -> None:
    """Written out: TDPO1's margin holds the KLs, and the dispersion scales each pair of MallowsPO-θ."""
    pairs = frontiers.pairs_of(task, 0)
    policy = (task.start + 0.3 * task.liked).log_softmax(1)
    ratios = [(policy - task.start)[words].sum(1) for words in (pairs.chosen, pairs.rejected)]
    divergence = (task.start.exp() * (task.start - policy)).sum(1)
    kls = [divergence[words[0]].sum(1) for words in (pairs.chosen, pairs.rejected)]
    gap = ratios[0] - ratios[1]
    wanted = {"DPO": gap, "TDPO1": gap - (kls[1] - kls[0]), "MallowsPO-θ": pairs.dispersion * gap}
    for name, z in wanted.items():
        loss = frontiers.loss_of(name, 1.0)
        found = loss(frontiers.batch_of(policy, task.start, pairs, None)).per_pair
        assert torch.allclose(found, -torch.nn.functional.logsigmoid(0.4 * z))


def test_curves_are_compared_where_both_are() -> None:
    lines = {"DPO": [[(1.0, 1.0, 0.5), (3.0, 3.0, 1.5)]], "TDPO1": [[(2.0, 2.5, 1.0), (4.0, 4.5, 2.0)]]}
    assert frontiers.leads("TDPO1", lines, 1) == [(2.5, 0.5)]
    assert frontiers.leads("TDPO1", {**lines, "TDPO1": [[(5.0, 1.0, 1.0)]]}, 1) == []
