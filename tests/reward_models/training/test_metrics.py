"""Accuracy, calibration and predicted ties of rewards, by hand."""

import math

import pytest

from reward_models.training.metrics import Judged, probability, reliability, reward_summary, tie_eta
from reward_models.training.reliability_plot import draw_reliability


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# margin, label, lengths of chosen and rejected
JUDGED = [
    Judged(2.0, 1.0, 10, 5),
    Judged(-1.0, 1.0, 10, 40),
    Judged(0.0, 1.0, 10, 10),
    Judged(-3.0, 0.0, 10, 11),
    Judged(1.0, 0.75, 30, 10),
    Judged(0.3, 0.5, 10, 10),
]


def test_ties_count_in_no_accuracy_and_equal_rewards_are_half_right() -> None:
    found = reward_summary(JUDGED)
    assert (found["pairs"], found["ties"]) == (5, 1)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1 + 1) / 5)
    assert found["longer_wins"] == pytest.approx((1 + 0 + 0.5 + 1 + 1) / 5)
    assert found["accuracy_error"] == pytest.approx(math.sqrt(0.7 * 0.3 / 5))


def test_all_right_is_not_certain_and_comparisons_of_one_prompt_are_not_independent() -> None:
    right = reward_summary([Judged(1.0, 1.0, 1, 1)] * 10)
    assert right["accuracy_error"] == 0.0, "the standard error has nothing to go by"
    # Wilson's interval of 10 in 10.
    assert right["accuracy_ci"] == [pytest.approx(0.7225, abs=1e-4), 1.0]
    margins = [1.0, 1.0, -1.0] * 20
    alone = reward_summary([Judged(margin, 1.0, 1, 1, f"{n}") for n, margin in enumerate(margins)])["accuracy_ci"]
    # Six comparisons of each of ten prompts, of which none is right for some and all for others.
    grouped = [Judged(margin, 1.0, 1, 1, f"{n // 6}") for n, margin in enumerate(sorted(margins))]
    together = reward_summary(grouped)["accuracy_ci"]
    assert isinstance(alone, list) and isinstance(together, list)
    assert float(str(together[1])) - float(str(together[0])) > 1.8 * (float(str(alone[1])) - float(str(alone[0])))
    # Right in all of three prompts is no more certain than right in three.
    few = reward_summary([Judged(1.0, 1.0, 1, 1, f"{n % 3}") for n in range(18)])["accuracy_ci"]
    assert few == [pytest.approx(0.4385, abs=1e-4), 1.0]
    assert reward_summary([])["accuracy_ci"] is None


def test_the_loss_is_the_mean_cross_entropy() -> None:
    soft = 0.75 * math.log(sigma(1)) + 0.25 * math.log(sigma(-1))
    by_hand = [math.log(sigma(2)), math.log(sigma(-1)), math.log(0.5), math.log(sigma(3)), soft]
    assert reward_summary(JUDGED)["loss"] == pytest.approx(-sum(by_hand) / 5)


def test_calibration_error_is_by_bins_of_confidence() -> None:
    sure = [Judged(math.log(4), label, 1, 1) for label in (1.0, 1.0, 1.0, 0.0)]  # 0.8, right in 3 of 4
    surer = [Judged(-math.log(19), label, 1, 1) for label in (0.0, 1.0)]  # 0.95 for rejected, right in 1 of 2
    bins = reliability([*sure, *surer])
    assert [(one.count, one.accuracy) for one in bins] == [(4, 0.75), (2, 0.5)]
    assert [one.confidence for one in bins] == pytest.approx([0.8, 0.95])
    assert reward_summary([*sure, *surer])["ece"] == pytest.approx((4 * 0.05 + 2 * 0.45) / 6)


def test_accuracy_by_length_goes_by_the_better_answer() -> None:
    rows = reward_summary(JUDGED)["by_length"]
    assert isinstance(rows, list)
    # Lengths of the better over the other: 2, 0.25, 1, 1.1 (rejected is better), 3.
    assert [(row["pairs"], row["accuracy"]) for row in rows if isinstance(row, dict)] == [
        (1, 0.0), (0, None), (2, 0.75), (0, None), (2, 1.0),
    ]  # fmt: skip


def test_with_ties_probabilities_are_those_of_rao_and_kupper() -> None:
    eta, margin = 0.5, 0.8
    win, loss = sigma(margin - eta), sigma(-margin - eta)
    assert probability(margin, eta) == pytest.approx(win / (win + loss))
    tie = (math.exp(2 * eta) - 1) * win * loss
    found = reward_summary([Judged(margin, 0.5, 1, 1), Judged(margin, 1.0, 1, 1)], eta)
    assert found["tie_probability"] == pytest.approx(tie)
    assert found["tie_share"] == 0.5
    assert found["loss"] == pytest.approx(-(math.log(tie) + math.log(win)) / 2)
    theta = math.exp(tie_eta(0.2))
    assert (theta - 1) / (theta + 1) == pytest.approx(0.2)


def test_far_margins_and_nothing_at_all_are_finite() -> None:
    assert probability(1e6) == 1 and probability(-1e6) == pytest.approx(0)
    far = reward_summary([Judged(-1e5, 1.0, 1, 1), Judged(1e5, 0.5, 1, 1)], 0.3)
    assert all(math.isfinite(value) for value in far.values() if isinstance(value, float))
    nothing = reward_summary([])
    assert (nothing["pairs"], nothing["accuracy"], nothing["ece"]) == (0, None, None)


def test_the_plot_names_its_axes() -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        picture = draw_reliability(reliability(JUDGED), "a model").decode()
    assert all(text in picture for text in ("a model", "perfectly calibrated", "predicted probability", "pairs"))
