import json
import shutil
from pathlib import Path

import pytest

from flows.commands.verify import verify_run
from flows.run_folder import redo
from flows.run_folder.approvals import approval_file
from flows.run_folder.redo import dependents, finish_setting_aside, parse_stage, set_aside
from flows.stages.context import Context
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json
from pipeline.storage.manifest import FREED, Freed, plain
from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import complete, digests, finished
from tests.support.tiny_run import make_job

FROM_PAIRS = [
    "round_001/pairs",
    "round_001/reference",
    "round_001/policy",
    "round_001/evaluation_samples",
    "round_001/evaluation",
    *(f"round_002/{name}" for name in ("samples", "labels", "pairs", "reference", "policy")),
    "round_002/evaluation_samples",
    "round_002/evaluation",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return finished(make_job(tmp_path_factory.mktemp("job")), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole: Context, tmp_path: Path) -> Context:
    shutil.copytree(whole.run.root, tmp_path / "run")
    return Context(RunFolder(tmp_path / "run"), whole.config)


def test_a_stage_and_what_was_made_from_it_move_and_the_same_command_makes_them_again(run: Context) -> None:
    root = run.run.root
    before = digests(run.run)
    assert set_aside(run.run, run.config, 1, "pairs") == FROM_PAIRS
    (place,) = (root / "set_aside").iterdir()
    assert [title for title in FROM_PAIRS if (root / title).exists()] == []
    assert [title for title in FROM_PAIRS if not (place / title / "manifest.json").is_file()] == []
    assert not verify_run(root).faults
    complete(run)
    assert digests(run.run) == before and not verify_run(root).faults


def test_evaluations_alone_take_no_policy_with_them(run: Context) -> None:
    assert set_aside(run.run, run.config, 1, "evaluation") == ["round_001/evaluation", "round_002/evaluation"]


def test_what_was_begun_from_it_goes_too(run: Context) -> None:
    for name in ("labels", "pairs"):
        run.run.stage(2, name).folder.rename(run.run.stage(2, name).partial)
    assert "round_002/labels.partial" in set_aside(run.run, run.config, 2, "samples")
    assert not run.run.begun()


def test_questions_to_people_go_with_the_responses_that_they_were_about(run: Context) -> None:
    for folder in ("questions/round_001", "questions/round_002"):
        (run.run.root / folder).mkdir(parents=True)
        (run.run.root / folder / "answers.jsonl").write_text("{}\n")
    assert "questions/round_002" in set_aside(run.run, run.config, 2, "samples")
    assert (run.run.root / "questions/round_001/answers.jsonl").is_file()
    (kept,) = (run.run.root / "set_aside").glob("*/questions/round_002/answers.jsonl")
    assert kept.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("round_", "stage", "gone"),
    [(1, "gate", [1, 2]), (1, "policy", [1, 2]), (2, "samples", [2]), (2, "gate", [2]), (0, "policy", [1, 2])],
)
def test_a_persons_answer_goes_with_the_question(run: Context, round_: int, stage: str, gone: list[int]) -> None:
    # The gate of round 2 has been begun, and an answer to an earlier one is left.
    run.run.stage(1, "gate").folder.mkdir()
    run.run.stage(2, "gate").partial.mkdir()
    for number in (1, 2):
        file = approval_file(run.run, number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"decision": "promote"}))
    set_aside(run.run, run.config, round_, stage)
    assert [number for number in (1, 2) if not approval_file(run.run, number).exists()] == gone
    assert len([*(run.run.root / "set_aside").glob("*/approvals/*.json")]) == len(gone)


def test_an_answer_without_its_gate_goes_too(run: Context) -> None:
    for number in (1, 2):
        approval_file(run.run, number).parent.mkdir(exist_ok=True)
        approval_file(run.run, number).write_text("{}")
    set_aside(run.run, run.config, 2, "policy")
    assert approval_file(run.run, 1).exists() and not approval_file(run.run, 2).exists()


@pytest.mark.parametrize("moves", range(0, len(FROM_PAIRS) + 1, 3))
def test_a_kill_between_two_moves_is_made_good_by_the_next_opening(
    run: Context, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0

    class KilledError(BaseException):
        pass

    def killed(source: Path, target: Path) -> None:
        nonlocal done
        if done == moves:
            raise KilledError
        done += 1
        moved(source, target)

    moved = redo._move
    monkeypatch.setattr(redo, "_move", killed)
    with pytest.raises(KilledError) if moves < len(FROM_PAIRS) else pytest.MonkeyPatch.context():
        set_aside(run.run, run.config, 1, "pairs")
    monkeypatch.undo()
    finish_setting_aside(run.run)
    (place,) = (run.run.root / "set_aside").iterdir()
    assert [title for title in FROM_PAIRS if (run.run.root / title).exists()] == []
    assert [title for title in FROM_PAIRS if not (place / title / "manifest.json").is_file()] == []
    assert not (place / "moves.json").exists() and (place / "moved.json").is_file()


def test_a_damaged_manifest_does_not_keep_its_stage_from_being_set_aside(run: Context) -> None:
    (run.run.root / "round_001/policy/manifest.json").write_text("{")
    assert "round_001/policy" in set_aside(run.run, run.config, 1, "policy")


def test_twice_in_a_second_keeps_both(run: Context) -> None:
    set_aside(run.run, run.config, 2, "evaluation")
    set_aside(run.run, run.config, 2, "policy")
    assert len([*(run.run.root / "set_aside").iterdir()]) == 2


def test_what_is_not_there_or_not_a_stage_is_refused(run: Context) -> None:
    shutil.rmtree(run.run.root / "round_002")
    with pytest.raises(UserError, match=r"--from 2:samples: .*round_002/samples does not exist"):
        set_aside(run.run, run.config, 2, "samples")
    for wrong in ("3:samples", "0:pairs", "1", "one:pairs", "1:reward"):
        with pytest.raises(UserError, match="not ROUND:STAGE with a round from 0 to 2"):
            parse_stage("--from", wrong, run.config)
    assert parse_stage("--from", "2:labels", run.config) == (2, "labels")


def test_a_stage_that_would_read_what_was_freed_is_refused(run: Context) -> None:
    freed = Freed({"model.safetensors": 1}, "retention", "now")
    write_json(run.run.stage(1, "policy").folder / FREED, plain(freed))
    with pytest.raises(UserError, match=r"round_002/samples reads round_001/policy.*--from 1:policy makes them again"):
        set_aside(run.run, run.config, 2, "samples")
    assert not (run.run.root / "set_aside").exists()
    assert set_aside(run.run, run.config, 1, "policy")[0] == "round_001/policy"


def test_strange_folders_stay_where_they_are(run: Context) -> None:
    (run.run.root / "round_001/notes").mkdir()
    assert run.run.stage(1, "notes") not in dependents(run.run, run.config, run.run.stage(0, "data"))


def test_moves_that_cannot_be_read_stop_the_run(run: Context) -> None:
    (run.run.root / "set_aside/x").mkdir(parents=True)
    (run.run.root / "set_aside/x/moves.json").write_text("{")
    with pytest.raises(RunError, match=r"moves\.json: stages could not be set aside"):
        finish_setting_aside(run.run)
