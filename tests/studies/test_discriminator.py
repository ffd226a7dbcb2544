"""The study of the discriminator: arms are what they are called, and the tables say what was found."""

import json
from pathlib import Path

import pytest

from pipeline.config.files import load_config
from tests.studies.discriminator import interval, late_accuracy, tables
from tests.studies.discriminator_arms import (
    ARMS,
    CONFIG,
    ONCE,
    ONLINE,
    REPLAY,
    SILVER,
    STATIC,
    Point,
    arm_folder,
    arm_settings,
)
from tests.studies.discriminator_plot import draw


def points(rewards: list[float], accuracy: float | None) -> list[Point]:
    return [
        Point(n, 32 * n, reward, 0.1 * n, 30.0, None if n == 0 else accuracy, 250, 8)
        for n, reward in enumerate(rewards)
    ]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_in_who_labels_and_in_nothing_else(arm: str, tmp_path: Path) -> None:
    plain = load_config([CONFIG])
    for round_ in range(1, plain.rounds + 1):
        policy = arm_folder(ONLINE, 3, tmp_path) / f"round_{round_:03d}" / "policy"
        policy.mkdir(parents=True)
        (policy / "history.json").write_text(json.dumps([{}] * 8))
    config = load_config([CONFIG], arm_settings(arm, 3, plain, tmp_path))
    assert config.discriminator is not None and plain.discriminator is not None
    assert config.discriminator.silver == SILVER[arm] and config.seed == 3
    assert config.discriminator.model_copy(update={"silver": "online"}) == plain.discriminator
    assert (config.replay is not None) == (arm == REPLAY)
    assert config.training.max_steps == (8 if arm == REPLAY else None)
    assert (config.loss, config.scorer, config.sampling) == (plain.loss, plain.scorer, plain.sampling)


def test_the_tables_compare_seed_by_seed() -> None:
    found = {
        ONLINE: {0: points([3.0, 4.0, 5.0], 0.8), 1: points([3.0, 6.0, 7.0], 0.7)},
        ONCE: {0: points([3.0, 3.0, 4.5], None), 1: points([3.0, 3.0, 6.0], None)},
        STATIC: {0: points([3.0, 4.0, 4.0], 0.6), 1: points([3.0, 4.0, 6.0], 0.5)},
    }
    said = tables(found)
    assert "6.00 ± 12.71" in said
    assert "+1.00 ± 0.00" in said and "+0.20 ± 0.00" in said and "start policy is 3.00" in said
    assert "—" in said, "gold alone has no labels whose accuracy there is"
    assert draw(found, "png").startswith(b"\x89PNG")


def test_intervals_are_students() -> None:
    assert interval([1.0]) == (1.0, None)
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5)
    assert late_accuracy(points([0.0] * 5, 0.9)) == pytest.approx(0.9) and late_accuracy(points([0.0], None)) is None
