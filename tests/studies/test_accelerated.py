"""Accelerated rounds, small: the extrapolated prior adds the tilt that theory says."""

import pytest

from tests.studies import accelerated
from tests.studies.test_gpo import failed


def test_exact_rounds_add_the_promised_tilt_in_the_promised_order() -> None:
    both = {alpha: [accelerated.exact_rounds(0, alpha, rounds=4)] for alpha in accelerated.ALPHAS}
    tilts = {alpha: [tilt for tilt, _ in runs] for alpha, runs in both.items()}
    assert failed(accelerated.tilt_claims(tilts)) == []
    # One round of plain DPO adds r/β once: the scale of β itself.
    assert tilts[0.0][0] == pytest.approx([1, 2, 3, 4], rel=1e-3)
    assert accelerated.order_claim({alpha: [reward for _, reward in runs] for alpha, runs in both.items()}).held


def test_the_promise_is_what_was_published() -> None:
    assert [round(accelerated.promised(alpha), 2) for alpha in (0.3, 0.5, 0.7)] == [1.38, 1.83, 2.69]


def test_sampled_rounds_gain_reward_and_so_do_those_of_the_production_trainer() -> None:
    world = accelerated.random_world(1, prompts=1, answers=5)
    start = float(world.reward(world.reference))
    assert accelerated.trained_rounds(1, 0.3, rounds=2)[-1] > start + 0.1
    runs = accelerated.sampled_rounds(20, 0.3, 32, rounds=2)
    assert sum(after - before > 0 for before, after in runs) > 15
