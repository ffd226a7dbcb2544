"""The reward-aware study, small: distances stop at the tilt, ties hold still, larger groups are less noisy."""

import pytest

from tests.studies import rewards
from tests.studies.test_gpo import failed
from tests.support.real_data import needs_real_data


def test_distances_stop_at_the_tilt_and_hard_labels_do_not() -> None:
    world = rewards.many_worlds([0], prompts=1, answers=4)
    presets = (*rewards.DISTANCES, "dpo")
    assert failed(rewards.course_claims(*rewards.courses(world, 1, presets, [rewards.SHORT, rewards.LONG]))) == []


def test_the_production_trainer_gets_there_too() -> None:
    assert rewards.by_trainer("rpo_sq", 2) < 0.02
    assert rewards.by_trainer("dpo", 2, epochs=30) > 0.05


def test_a_tie_moves_reward_aware_losses_by_nothing() -> None:
    ties = {preset: rewards.moved_by_ties(preset) for preset in (*rewards.DISTANCES, "dpo")}
    assert failed(rewards.tie_claims(ties)) == []


def test_four_answers_in_a_group_are_less_noisy_than_two_groups_of_two() -> None:
    variances = {size: [rewards.relative_variance(0, size)] for size in (2, 4)}
    assert rewards.variance_claim(variances).held
    # An answer that is paired with more others, at equally many answers, halves the noise at most.
    assert variances[4][0] / variances[2][0] == pytest.approx(0.65, abs=0.2)


@needs_real_data
def test_real_scores_are_read_and_reached() -> None:
    world, other = rewards.real_world(0)
    assert world.rewards.shape == other.shape == (160, 4)
    assert world.rewards[0].tolist() == [5, 5, 5, 5] and world.rewards[4].tolist() == [4, 4, 3, 2]
    few = rewards.World(world.reference[:12], world.rewards[:12])
    policy = rewards.minimise(few.reference, rewards.objective_of(rewards.load_preset("rpo_sqloo", beta=0.5), few))
    assert float(rewards.total_variation(policy, few.tilt(2.0)).max()) < 1e-3
