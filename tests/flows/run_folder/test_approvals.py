"""What a person answers to a gate: kept, read back, replaced while that has no effect yet, and refused otherwise."""

import json
import sys
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.run_folder.approvals import approval_file, read_approval, read_decision, record_approval, waiting
from pipeline.errors import RunError, UserError
from pipeline.storage.run_folder import RunFolder
from tests.support.gates import decided


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Round 1 was promoted, round 2 waits."""
    run = RunFolder(tmp_path)
    run.config_file.write_text("name: x\n")
    decided(run, 1, "promote", 1)
    decided(run, 2, "pause", 1)
    return run


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prefloop", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_answer_is_kept_with_who_why_and_when(run: RunFolder) -> None:
    assert waiting(run) == [2]
    record_approval(run.root, 2, "roll_back", "ada", "too long")
    kept = json.loads(approval_file(run, 2).read_text())
    assert (kept["decision"], kept["by"], kept["reason"]) == ("roll_back", "ada", "too long")
    assert kept["time"].endswith("Z") and waiting(run) == []
    # Nothing has come of it yet.
    record_approval(run.root, 2, "stop", "ada")
    answered = read_approval(run, 2)
    assert answered is not None and answered.decision == "stop"


def test_the_command_answers_the_round_that_waits(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "approve", run.root, "--decision", "roll_back", "--reason", "no") == 0
    assert "the next round starts from round 1's policy" in capsys.readouterr().out
    answered = read_approval(run, 2)
    assert answered is not None and (answered.decision, answered.reason) == ("roll_back", "no")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--decision", "yes"), "decision: 'yes' is not one of promote, stop, roll_back"),
        (("--decision", "pause"), "'pause' is not one of promote, stop, roll_back"),
        (("--round", "1"), "round: the gate of round 1 decided promote"),
        (("--round", "7"), "rounds that wait for an answer: 2"),
        (("--reason", "x" * 3000), "reason: String should have at most 2000 characters"),
    ],
)
def test_a_wrong_answer_is_refused(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    assert call(monkeypatch, "approve", run.root, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not approval_file(run, 2).exists()


def test_nothing_is_answered_twice_or_where_there_is_no_run(run: RunFolder, tmp_path: Path) -> None:
    run.stage(3, "labels").partial.mkdir(parents=True)
    with pytest.raises(UserError, match=r"round 3 of .* has begun"):
        record_approval(run.root, 2, "promote")
    with pytest.raises(UserError, match="not a run folder"):
        record_approval(tmp_path / "none", 2, "promote")
    assert waiting(run) == []


def test_a_file_written_by_hand_is_checked(run: RunFolder) -> None:
    file = approval_file(run, 2)
    file.parent.mkdir()
    file.write_text('{"decision": "go"}')
    with pytest.raises(UserError, match=r"round_002.json: decision: input should be 'promote', 'stop' or 'roll_back'"):
        read_approval(run, 2)
    file.write_text('{"decision": "stop", "who": "me"}')
    with pytest.raises(UserError, match="who: no such setting"):
        read_approval(run, 2)


def test_a_damaged_decision_is_named(run: RunFolder) -> None:
    file = run.stage(2, "gate").folder / "decision.json"
    file.write_text('{"decision": ')
    with pytest.raises(RunError, match=r"decision\.json: not a readable decision"):
        read_decision(run, 2)


def test_a_decision_that_was_edited_is_named(run: RunFolder) -> None:
    decided(run, 3, "promote", 1)
    assert (made := read_decision(run, 3)) is not None and made.best_round == 1
    file = run.stage(3, "gate").folder / "decision.json"
    file.write_text(file.read_text().replace('"best_round": 1', '"best_round": 2'))
    with pytest.raises(RunError, match=r"decision\.json: not what its manifest says"):
        read_decision(run, 3)
