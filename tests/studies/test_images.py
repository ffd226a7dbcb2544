"""The known collapse of image policies, on the real run: alarms call it before the second round ends."""

from pathlib import Path

import pytest

from flows.stages.context import Context
from flows.stages.images.evaluation import dot_shares
from tests.studies.images import ARMS, alarms_of
from tests.support.image_run import run_images

# The policy, the noise and the pictures are those of configs/images.yaml; a shorter start and fewer images to judge.
SHORT = (
    "gate=null",
    "warm_start.max_steps=300",
    "warm_start.epochs=4",
    "held_out.prompts=128",
    "evaluation.bootstrap=100",
)


@pytest.mark.whole
def test_few_pairs_a_small_beta_a_moving_reference_and_a_high_rate_are_called_in_two_rounds(tmp_path: Path) -> None:
    run = run_images(tmp_path / "run", *SHORT, *ARMS["collapse"], rounds=2, size=())
    called = {rule for number in (1, 2) for rule in alarms_of(run, number)}
    assert {"winner_error", "both_errors"} & called
    shares = [dot_shares(Context(run, run.config()), number)["clean"] for number in range(3)]
    assert shares[2] < 0.7 * shares[0], "it is a collapse, which no alarm would otherwise have to call"
