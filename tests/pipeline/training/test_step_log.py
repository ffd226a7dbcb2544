"""Steps are on disk as they are made, each once, whatever was killed when."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.training.step_log import StepLog, StepReport, read_steps

STEP = StepReport(1, 4, 0.5, 1e-3, 1.0, 0.1, 0.75, -1.0, -2.0, 100, 50, 0.0, 0.1, 1000.0, 0.01, -0.01)
STEPS = tuple(replace(STEP, step=number, loss=1 / number) for number in range(1, 5))


def test_a_step_is_there_at_once(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl")
    for count, step in enumerate(STEPS, 1):
        log.add(step)
        assert read_steps(tmp_path / "steps.jsonl") == STEPS[:count]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo'])
def test_going_on_from_a_checkpoint_drops_the_steps_after_it(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "steps.jsonl"
    log = StepLog(file)
    for step in STEPS[:3]:
        log.add(step)
    with file.open("a") as lines:
        lines.write(torn)
    assert read_steps(file) == STEPS[:3]
    again = StepLog(file)
    for step in STEPS[2:]:
        again.add(replace(step, seconds=9.0))
    assert read_steps(file) == (*STEPS[:2], *(replace(step, seconds=9.0) for step in STEPS[2:]))


def test_what_is_finished_is_the_history(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    StepLog(file).add(STEPS[3])
    StepLog(file).finish(STEPS)
    assert read_steps(file) == STEPS


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 1}\n')
    with pytest.raises(RunError, match=r"steps.jsonl: not a readable list of steps"):
        read_steps(file)
