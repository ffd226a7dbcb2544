"""The whole run's end follows from what its rounds took, without pauses and without counting overlaps twice."""

from pathlib import Path

import pytest

from flows.report.findings.run_end import seconds_at_work, seconds_left, whole_run
from flows.report.markdown import clock_time
from pipeline.config.files import load_config
from pipeline.storage.manifest import Manifest, StageKey
from pipeline.storage.run_folder import RunFolder
from tests.support.small_config import write_small_config


def stage(end: int, seconds: float) -> Manifest:
    """One that ended ``end`` seconds after noon."""
    finished = f"2026-12-01T{12 + end // 3600:02d}:{end // 60 % 60:02d}:{end % 60:02d}Z"
    return Manifest("samples", 1, "key", {}, {}, 0, 1, seconds, finished=finished)


def test_work_counts_once_where_stages_overlap_and_not_where_the_run_paused() -> None:
    # 0-100, 40-120 beside it, then two hours of nothing, then 30 s.
    assert seconds_at_work([stage(100, 100.0), stage(120, 80.0), stage(7350, 30.0)]) == 150.0
    # One within another.
    assert seconds_at_work([stage(100, 100.0), stage(60, 20.0)]) == 100.0


def test_the_end_is_the_rest_of_this_round_and_the_rounds_after_it() -> None:
    rounds = [[stage(100, 100.0)], [stage(300, 140.0)]]  # 120 s a round
    present = [stage(350, 50.0)]
    # 70 s of this round are left, of which the present stage has had 20; then three rounds.
    assert seconds_left(rounds, present, later=3, elapsed=20.0, stage=None) == 50.0 + 3 * 120.0
    # The stage's own pace says more than the average once it takes longer.
    assert seconds_left(rounds, present, later=3, elapsed=20.0, stage=90.0) == 90.0 + 3 * 120.0
    # A round that takes longer than the others is about to end, not over since long.
    assert seconds_left(rounds, present, later=0, elapsed=500.0, stage=None) == 0.0


def test_nothing_is_claimed_before_a_round_is_complete() -> None:
    assert seconds_left([], [stage(350, 50.0)], later=3, elapsed=20.0, stage=90.0) is None


@pytest.mark.parametrize("round_, words", [(1, "whole run: known after round 1"), (3, "whole run: 3:20 left")])
def test_words_from_a_run_folder(tmp_path: Path, round_: int, words: str) -> None:
    run = RunFolder(tmp_path)
    config = load_config([write_small_config(tmp_path, tmp_path)], ["rounds=3"])
    for number in range(round_):
        run.stage(number, "samples").begin(StageKey({}, {}, 0)).commit(1, {})
    # What the rounds took, a moment, says less than the present stage's own pace.
    assert whole_run(run, config, round_, clock_time)(200.0) == words


def test_a_run_of_one_round_has_no_words(tmp_path: Path) -> None:
    config = load_config([write_small_config(tmp_path, tmp_path)], ["rounds=1"])
    assert whole_run(RunFolder(tmp_path), config, 1, clock_time)(200.0) == ""
