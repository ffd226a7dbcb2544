"""Learning-rate factors and step counts."""

import pytest

from pipeline.config import Optimisation
from pipeline.training.optimiser import rate_factor, steps_of


def factors(steps: int, **settings: object) -> list[float]:
    return [rate_factor(step, steps, Optimisation.model_validate(settings)) for step in range(steps)]


def test_linear_rises_over_the_warm_up_and_falls_to_one_step_before_zero() -> None:
    assert factors(8, schedule="linear", warmup=0.5) == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]


def test_cosine_is_at_half_in_the_middle() -> None:
    assert factors(4, schedule="cosine", warmup=0) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_constant_stays() -> None:
    assert factors(5, schedule="constant", warmup=0.4) == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("warmup", [0, 0.3, 1])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_has_rate_zero(schedule: str, warmup: float, steps: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(steps, schedule=schedule, warmup=warmup))


@pytest.mark.parametrize(
    ("examples", "settings", "steps"),
    [
        (100, {"batch_size": 32}, 4),
        (96, {"batch_size": 32, "epochs": 2.0}, 6),
        (96, {"batch_size": 32, "epochs": 0.5}, 2),
        (5, {"batch_size": 32, "epochs": 0.1}, 1),
        (100, {"batch_size": 10, "max_steps": 3}, 3),
        (10, {"batch_size": 10, "max_steps": 3}, 1),
    ],
)
def test_steps_are_epochs_of_batches_up_to_the_limit(examples: int, settings: dict[str, object], steps: int) -> None:
    assert steps_of(examples, Optimisation.model_validate(settings)) == steps
