"""The value-incentivised study, small: pessimism helps with good data alone, optimism finds a rare best answer."""

import torch

from tests.studies import value
from tests.studies.test_gpo import failed


def test_pessimism_helps_with_good_data_and_hardly_with_uniform_data() -> None:
    seeds = range(3)
    offline = {
        data: {alpha: value.offline_gaps(seeds, data, alpha) for alpha in (0.0, value.PESSIMISM)} for data in value.DATA
    }
    assert failed(value.offline_claims(offline)) == []


def test_optimism_leaves_less_gap_than_none_where_the_best_answer_is_rare_and_the_wrong_sign_more() -> None:
    none, right, wrong = (
        sum(value.regret(value.online_gaps([0], "rare", alpha, sign, rounds=8)))
        for alpha, sign in ((0.0, 1), (0.3, 1), (0.3, -1))
    )
    assert right < 0.9 * none and right < 0.9 * wrong


def test_the_best_answer_is_rare_and_the_gap_is_least_at_the_tilt() -> None:
    world = value.online_world([0], "rare")
    assert float(world.reference.exp()[:, 0].max()) < 0.03 and bool((world.rewards.argmax(1) == 0).all())
    assert torch.allclose(value.gap(world, world.tilt(1 / 0.3), 0.3), torch.zeros(value.PROMPTS).double(), atol=1e-9)
    assert float(value.gap(world, world.reference, 0.3).min()) > 0
