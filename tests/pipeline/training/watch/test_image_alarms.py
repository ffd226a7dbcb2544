"""Alarms of image policies: the winner unlearnt, and both sides unlearnt while the loss falls."""

from dataclasses import replace

import pytest

from pipeline.config.training import Alarms
from pipeline.training.step_log import StepReport
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import Alarm, Watch
from pipeline.training.watch.image_errors import chosen_error, rejected_error
from tests.pipeline.training.watch.test_alarms import STEPS, Curve, at, rises

# Score of the reference: 20 nats a draw, as of 192 pixel values at a mean squared error of 0.01.
REFERENCE = -20.0


def image_step(step: int, loss: float, chosen: float, rejected: float) -> StepReport:
    """A step whose errors are so many times the reference's."""
    return replace(
        at(step, loss=loss),
        chosen_logp_per_token=chosen * REFERENCE,
        rejected_logp_per_token=rejected * REFERENCE,
        chosen_change_per_token=(chosen - 1) * REFERENCE,
        rejected_change_per_token=(rejected - 1) * REFERENCE,
    )


def watched(loss: Curve, chosen: Curve, rejected: Curve, images: bool = True) -> dict[str, Alarm]:
    watch = Watch(Alarms(), STEPS, images=images)
    for step in range(1, STEPS + 1):
        done = (step - 1) / (STEPS - 1)
        watch.see(image_step(step, loss(done), chosen(done), rejected(done)))
    return {alarm.rule: alarm for alarm in watch.alarms}


FALLS = rises(0.69, 0.32)


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "rules"),
    [
        # A good run: the winner's error grows to 1.3 times the reference's, the loser's more.
        (FALLS, rises(1, 1.3), rises(1, 1.8), set()),
        # The known collapse: accuracy and loss look well.
        (FALLS, rises(1, 6), rises(1, 9), {"winner_error", "both_errors"}),
        (FALLS, rises(1, 1.65), rises(1, 1.9), {"both_errors"}),
        # Both grow, but the loss tells of it itself.
        (rises(0.69, 0.8), rises(1, 1.48), rises(1, 1.48), set()),
        (FALLS, rises(1, 1.9), rises(1, 0.9), {"winner_error"}),
        # Only rejected images are unlearnt.
        (FALLS, rises(1, 0.9), rises(1, 5), set()),
    ],
)
def test_errors_are_watched_against_the_reference(loss: Curve, chosen: Curve, rejected: Curve, rules: set[str]) -> None:
    assert {*watched(loss, chosen, rejected)} == rules


def test_a_collapse_is_called_early_and_in_words() -> None:
    found = watched(FALLS, rises(1, 6), rises(1, 9))
    # Growth passes 1.5 at a tenth of the steps; the window of three steps follows, and three steps come before it.
    assert found["winner_error"].step <= STEPS // 5
    assert found["winner_error"].value == pytest.approx(6 - 5 / (STEPS - 1), abs=0.01)
    assert alarm_line(found["winner_error"]).startswith(
        f"alarm winner_error, step {found['winner_error'].step} of {STEPS}: the error on chosen images is 5.87 times"
    )
    assert "both at least" in alarm_line(found["both_errors"])


def test_rules_of_texts_say_nothing_of_images_and_the_other_way_round() -> None:
    # The scores fall by 100 nats a draw, far beyond the limits of nats a token.
    assert {*watched(FALLS, rises(1, 6), rises(1, 9), images=False)} == {"chosen", "margin"}
    assert "chosen" not in watched(FALLS, rises(1, 6), rises(1, 9))


def test_the_growth_is_that_of_the_errors() -> None:
    step = image_step(1, 0.5, 1.5, 2.0)
    assert (chosen_error(step), rejected_error(step)) == (pytest.approx(1.5), pytest.approx(2.0))
    assert chosen_error(at(1)) is None
