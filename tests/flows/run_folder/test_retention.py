import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.commands.verify import verify_run
from flows.report.terminal import read_rounds
from flows.run_folder import retention
from flows.run_folder.inputs import labelling
from flows.run_folder.redo import set_aside
from flows.run_folder.retention import best_round, free_room, told
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.manifest import StageKey
from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import complete, digests, evaluate, finished
from tests.support.gates import decided
from tests.support.tiny_run import begin, make_job, open_context, train

LAST = ("retention.last=1", "retention.best=false")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return finished(job, tmp_path_factory.mktemp("whole") / "run", "rounds=3", mode="offline")


@pytest.fixture
def run(whole: Context, tmp_path: Path) -> RunFolder:
    shutil.copytree(whole.run.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def config(job: Path, run: RunFolder, *settings: str) -> Context:
    return open_context(job, run.root, "offline", "rounds=3", *settings)


def weights(run: RunFolder) -> list[int]:
    """Rounds whose policies have weights."""
    return [n for n in run.rounds() if (run.stage(n, "policy").folder / "model.safetensors").is_file()]


def test_all_is_kept_unless_the_config_says_otherwise(job: Path, run: RunFolder) -> None:
    assert free_room(run, config(job, run).config) == [] and weights(run) == [1, 2, 3]


def test_the_last_ones_and_the_best_are_kept_and_what_was_freed_is_told(job: Path, run: RunFolder) -> None:
    size = (run.stage(1, "policy").folder / "model.safetensors").stat().st_size
    context = config(job, run, "retention.last=1")
    metrics = run.stage(2, "evaluation").folder / "metrics.json"
    assert best_round(run) is not None
    for round_ in (1, 2, 3):
        file = run.stage(round_, "evaluation").folder / "metrics.json"
        write_json(file, json.loads(file.read_text()) | {"win_rate_vs_start": 0.9 if round_ == 2 else 0.1})
    assert best_round(run) == 2 and metrics.is_file()
    freed = free_room(run, context.config)
    assert [stage.title for stage in freed] == ["round_001/policy"] and weights(run) == [2, 3]
    assert [stage.bytes for stage in freed] == [size]
    assert told(freed) == f"retention: {size / 2**20:,.1f} MiB freed: weights of round_001/policy"
    record = json.loads((run.stage(1, "policy").folder / "freed.json").read_text())
    assert record["files"] == {"model.safetensors": size} and record["reason"].startswith("retention: the last 1")
    assert free_room(run, context.config) == []


def test_a_freed_stage_is_complete_and_not_damaged(job: Path, run: RunFolder) -> None:
    context = config(job, run, *LAST)
    assert [stage.title for stage in free_room(run, context.config)] == ["round_001/policy", "round_002/policy"]
    found = verify_run(run.root)
    states = {stage.stage: stage.state for stage in found.stages}
    assert not found.faults and states["round_001/policy"] == states["round_002/policy"] == "freed"
    assert states["round_003/policy"] == "intact" and len(read_rounds(run.root)) == 4
    assert all(not run_stage(Context(run, context.config), n, "policy") for n in (1, 2, 3))
    # What is left of it is still checked.
    (run.stage(1, "policy").folder / "config.json").write_text("{}")
    assert [fault.file.name for fault in verify_run(run.root).faults] == ["config.json"]


def test_what_a_stage_to_come_reads_is_kept(job: Path, run: RunFolder) -> None:
    fixed = config(job, run, *LAST, "training.reference=every_n", "training.reference_every=2")
    for name in ("policy", "evaluation_samples", "evaluation"):
        shutil.rmtree(run.stage(3, name).folder)
    # Round 3 starts from policy 2 and is compared with it; policy 1 is read no more.
    assert [stage.title for stage in free_room(run, fixed.config)] == ["round_001/policy"]
    assert weights(run) == [2]


def test_a_run_frees_as_it_goes_and_ends_with_the_same_weights(whole: Context, job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "offline", "rounds=3", *LAST)
    context.run.root.mkdir()
    write_text(context.run.config_file, dump_config(context.config))
    begin(context)
    evaluate(context, 0)
    left = []
    for round_ in (1, 2, 3):
        train(context, round_)
        evaluate(context, round_)
        free_room(context.run, context.config)
        left.append(weights(context.run))
    assert left == [[1], [2], [3]]
    assert digests(context.run) == digests(whole.run)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_kill_while_weights_are_removed_leaves_nothing_that_looks_damaged(
    job: Path, run: RunFolder, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(stage: Any, freed: Any) -> None:
        if stage.round > kept:
            raise KilledError
        removed(stage, freed)

    removed = retention._remove
    monkeypatch.setattr(retention, "_remove", killed)
    context = config(job, run, *LAST)
    with pytest.raises(KilledError):
        free_room(run, context.config)
    monkeypatch.undo()
    assert not verify_run(run.root).faults
    free_room(run, context.config)
    assert weights(run) == [3] and not verify_run(run.root).faults


def test_a_freed_model_that_is_asked_for_is_named_and_can_be_made_again(
    job: Path, run: RunFolder, whole: Context
) -> None:
    free_room(run, config(job, run, *LAST).config)
    context = Context(run, whole.config)
    with pytest.raises(UserError, match=r"reads round_002/policy, whose files were removed.*--from 2:policy"):
        set_aside(run, whole.config, 3, "evaluation")
    with pytest.raises(UserError, match="reads round_001/policy, whose files were removed"):
        set_aside(run, whole.config, 2, "policy")
    shutil.rmtree(run.stage(3, "evaluation").folder)
    with pytest.raises(RunError, match=r"round_002/policy: files were removed on .*--from 2:policy makes them again"):
        run_stage(context, 3, "evaluation")
    set_aside(run, whole.config, 1, "policy")
    complete(context)
    assert weights(run) == [1, 2, 3] and digests(run) == digests(whole.run)


def test_the_best_round_is_the_gates(run: RunFolder) -> None:
    decided(run, 3, "roll_back", 1)
    assert best_round(run) == 1


def test_nothing_is_removed_while_it_cannot_be_read_which_round_is_the_best(
    job: Path, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    context = config(job, run, "retention.last=1")
    file = run.stage(2, "evaluation").folder / "metrics.json"
    whole = file.read_text()
    file.write_text(whole[:20])
    assert free_room(run, context.config) == [] and weights(run) == [1, 2, 3]
    assert "nothing is freed" in caplog.text
    file.write_text(whole)
    assert free_room(run, context.config) != []


def test_what_a_run_reads_that_is_extended_is_kept(job: Path, run: RunFolder) -> None:
    every_second = config(job, run, *LAST, "gate=null", "training.reference=every_n", "training.reference_every=2")
    # Round 4 would start from policy 3 and measure against policy 2.
    assert [stage.title for stage in free_room(run, every_second.config)] == ["round_001/policy"]
    assert weights(run) == [2, 3]


def test_what_a_round_reads_after_a_roll_back_is_kept(job: Path, run: RunFolder) -> None:
    context = config(job, run, *LAST, "loss.preset=apo_accelerated")
    decided(run, 3, "pause", 2)
    free_room(run, context.config)
    # Should a person send it back to policy 2, the next round extrapolates from policies 1 and 2.
    assert weights(run) == [1, 2, 3]


def test_of_discriminators_those_are_read_that_label(run: RunFolder) -> None:
    for number, labels_with in ((1, 1), (2, 1), (3, 3)):
        writer = run.stage(number, "discriminator").begin(StageKey(config={}, inputs={}, seed=0))
        writer.commit(1, {"labels_with": f"round_00{labels_with}/discriminator"})
    read = {number: [stage.round for stage in labelling(run, number)] for number in range(4)}
    assert read == {0: [], 1: [1, 1], 2: [2, 1], 3: [3, 3]}
    # One that cannot say which: any.
    (run.stage(2, "discriminator").folder / "manifest.json").write_text("{")
    assert [stage.round for stage in labelling(run, 2)] == [1, 2]
