"""The children's log files, as the log of a stage's task shows them."""

import logging
from pathlib import Path

import pytest

from flows.workers.logs import child_logs
from flows.workers.logs.child_logs import ChildLogs

LOG = logging.getLogger("stage")


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stage")


def append(file: Path, text: str) -> None:
    with file.open("a") as log:
        log.write(text)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(level, text) for _, level, text in caplog.record_tuples]


def test_a_stage_shows_what_was_written_while_it_ran(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(tmp_path / "trainer.log", "of an earlier run\n")
    append(tmp_path / "prefect.log", "not a child's\n")
    logs = ChildLogs(tmp_path)
    append(tmp_path / "trainer.log", "one\nWARNING: tw")
    append(tmp_path / "sampler.log", "three\n")
    logs.show(LOG)
    append(tmp_path / "trainer.log", "o\nno line break")
    logs.show(LOG)
    assert said(caplog) == [(20, "sampler: three"), (20, "trainer: one"), (30, "trainer: WARNING: two")]
    logs.show(LOG, over=True)
    assert said(caplog)[3:] == [(20, "trainer: no line break")]


def test_what_was_said_before_is_not_said_again_unless_it_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs = ChildLogs(tmp_path)
    for _ in range(2):
        append(tmp_path / "sampler.log", "WARNING: odd\nValueError: bad\n")
        logs.begin()
        logs.show(LOG)
    assert [level for level, _ in said(caplog)] == [30, 40, 40]


def test_a_stage_shows_so_many_lines_and_all_its_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_logs, "MAX_LINES", 3)
    logs = ChildLogs(tmp_path)
    append(tmp_path / "trainer.log", "".join(f"line {number}\n" for number in range(9)) + "ValueError: bad\n")
    logs.show(LOG)
    texts = [text for _, text in said(caplog)]
    assert texts[:3] == [f"trainer: line {number}" for number in range(3)]
    assert texts[3].startswith("more than 3 lines") and texts[4:] == ["trainer: ValueError: bad"]
    logs.begin()
    append(tmp_path / "trainer.log", "of the next stage\n")
    logs.show(LOG)
    assert said(caplog)[-1] == (20, "trainer: of the next stage")


def test_of_very_much_the_end_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_logs, "MAX_BYTES", 20)
    logs = ChildLogs(tmp_path)
    append(tmp_path / "trainer.log", "x" * 1000 + "\nthe last words\n")
    logs.show(LOG)
    assert said(caplog)[-1] == (20, "trainer: the last words")
