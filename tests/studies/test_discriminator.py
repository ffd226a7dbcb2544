"""The study of the discriminator: arms are what they are called, and the tables say what was found."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.files import load_config
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS, read_steps
from tests.studies.discriminator import interval, late_accuracy, tables
from tests.studies.discriminator_arms import (
    ARMS,
    CONFIG,
    ONCE,
    ONLINE,
    REPLAY,
    SELF,
    SILVER,
    STATIC,
    Point,
    arm_config,
    arm_folder,
    make_start,
    run_arm,
)
from tests.studies.discriminator_plot import draw
from tests.support.tiny_run import InventedResponses

pytestmark = pytest.mark.whole

SEED, BUDGET = 3, 8
# Gold counts barns, of which every prompt's responses hold some and lack some.
TINY = [
    *("rounds=2", "prompts.prompts=80", "prompts_per_round=24", "held_out.prompts=8"),
    *("policy.vocab_size=300", "policy.hidden_size=32", "policy.layers=1", "warm_start.max_steps=2"),
    *(
        "scorer.words=[barn]",
        f"discriminator.budget={BUDGET}",
        "discriminator.gate={accuracy: 0.5, comparisons: 1, error: 1}",
        "training.batch_size=8",
    ),
]


def points(rewards: list[float], accuracy: float | None) -> list[Point]:
    return [
        Point(n, 32 * n, reward, 0.1 * n, 30.0, None if n == 0 else accuracy, 250, 8)
        for n, reward in enumerate(rewards)
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every arm has run, with one seed."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, list[Point]]:
    start: Any = None
    make_start(TINY, out, start, lambda _: None)
    workers: Any = InventedResponses(RunFolder(out / "start").stage(0, "policy").folder)
    return {arm: run_arm(arm, SEED, TINY, out, workers, lambda _: None) for arm in ARMS}


@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_in_who_labels_and_in_nothing_else(arm: str, out: Path, found: dict[str, list[Point]]) -> None:
    config, plain = arm_config(arm, SEED, TINY, out), load_config([CONFIG], TINY)
    assert config.discriminator is not None and plain.discriminator is not None
    assert config.discriminator.silver == SILVER[arm] and config.seed == SEED
    assert config.discriminator.model_copy(update={"silver": "online"}) == plain.discriminator
    assert (config.replay is not None) == (arm == REPLAY)
    assert config.training.max_steps == (max(point.steps for point in found[ONLINE]) if arm == REPLAY else None)
    assert (config.loss, config.scorer, config.sampling) == (plain.loss, plain.scorer, plain.sampling)
    assert config.policy.path == str(RunFolder(out / "start").stage(0, "policy").folder)


@pytest.mark.parametrize("arm", ARMS)
def test_points_are_what_the_arm_s_stages_have_counted(arm: str, out: Path, found: dict[str, list[Point]]) -> None:
    run, (start, *rounds) = RunFolder(arm_folder(arm, SEED, out)), found[arm]
    assert (start.bought, start.pairs, start.steps, start.accuracy, start.kl_to_start) == (0, 0, 0, None, 0)
    assert [point.round for point in rounds] == [1, 2]
    for point in rounds:
        policy = run.stage(point.round, "policy").require()
        assert (
            point.steps == policy.metrics["steps"] == len(read_steps(run.stage(point.round, "policy").folder / STEPS))
        )
        assert point.pairs == policy.rows
        assert point.reward == run.stage(point.round, "evaluation").require().metrics["reward"]


def test_all_arms_buy_as_much_gold_and_replay_takes_as_many_steps(found: dict[str, list[Point]]) -> None:
    assert {arm: points[-1].bought for arm, points in found.items()} == dict.fromkeys(ARMS, 2 * BUDGET)
    assert [point.bought for point in found[STATIC]] == [0, 2 * BUDGET, 2 * BUDGET]
    steps = max(point.steps for point in found[ONLINE])
    assert [point.steps for point in found[REPLAY]] == [0, steps, steps] and steps > found[ONCE][-1].steps > 0
    labelled = {arm for arm, points in found.items() if all(point.accuracy is not None for point in points[1:])}
    assert labelled == {ONLINE, STATIC, SELF}


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
