"""Trackers are told each step and each round once, whatever was killed when."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.report.trackers.follow import Trackers, require_trackers
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.storage.atomic import write_json
from pipeline.storage.run_folder import RunFolder, StageKey
from pipeline.training.step_log import STEPS, StepLog, StepReport

KEY = StageKey({}, {}, 0)
STEP = StepReport(1, 3, 0.5, 1e-3, 1.0, 0.1, 0.75, -1.0, -2.0, 100, 50, 0.0, 0.1, 1000.0, -0.125, -0.25)


def config(*trackers: str) -> RunConfig:
    plain = {"name": "x", "mode": "offline", "policy": {"path": "m"}, "pairs": {"path": "p"}, "trackers": trackers}
    return RunConfig.model_validate(plain)


def evaluate(run: RunFolder, round_: int, reward: float) -> None:
    """An evaluation as the stage leaves it."""
    writer = run.stage(round_, "evaluation").begin(KEY)
    write_json(writer.folder / "metrics.json", {"round": round_, "reward": reward, "win_rate_vs_start_ci": [0.1, 0.2]})
    writer.commit(1, {})


def training(run: RunFolder, round_: int) -> StepLog:
    return StepLog(run.stage(round_, "policy").begin(KEY).folder / STEPS)


def logged(root: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) as TensorBoard shows them."""
    events = EventAccumulator(str(root / "trackers" / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def test_a_run_that_is_killed_within_a_round_is_told_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    evaluate(run, 0, 1.0)
    with Trackers(run, config("tensorboard")) as trackers:
        log = training(run, 1)
        for number in (1, 2):
            log.add(replace(STEP, step=number, loss=number / 10))
        trackers.follow()
        log.add(replace(STEP, step=3, loss=0.3))
        with (run.stage(1, "policy").partial / STEPS).open("a") as lines:
            lines.write('{"step": 4, "lo')
    # Training goes on from a checkpoint after step 1, so steps 2 and 3 are made again.
    with Trackers(run, config("tensorboard")) as trackers:
        log = training(run, 1)
        for number in (2, 3, 4):
            log.add(replace(STEP, step=number, loss=number / 10))
            trackers.follow()
        run.stage(1, "policy").begin(KEY).commit(1, {})
        evaluate(run, 1, 2.0)
        trackers.follow()
        training(run, 2).add(replace(STEP, loss=0.9))
    assert logged(tmp_path, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.9)]
    assert logged(tmp_path, "round/reward") == [(0, 1.0), (4, 2.0)]
    assert logged(tmp_path, "train/chosen_change_per_token")[0] == (1, -0.125)


@pytest.mark.whole
def test_wandb_offline_holds_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = RunFolder(tmp_path)
    evaluate(run, 0, 1.0)
    log = training(run, 1)
    for number in (1, 2):
        log.add(replace(STEP, step=number, loss=number / 10))
    with Trackers(run, config("wandb")):
        pass
    (file,) = (tmp_path / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    assert wandb_history(file) == [
        {"step": 0, "round/reward": 1.0},
        {"step": 1, "train/loss": 0.1},
        {"step": 2, "train/loss": 0.2},
    ]


def mlflow_points(root: Path, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(f"sqlite:///{root / 'trackers' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("prefloop").experiment_id])
    assert (run.info.status, run.data.params["pairs.path"]) == ("FINISHED", "p")
    return [(point.step, round(point.value, 4)) for point in client.get_metric_history(run.info.run_id, name)]


def trackio_points(root: Path, name: str) -> list[tuple[int, float]]:
    """As trackio's own command prints them. It has no run left to finish, which it would print as the program ends."""
    from trackio import context_vars

    assert context_vars.current_run.get() is None
    (run,) = told_by_trackio(root, "list", "runs")["runs"]
    assert run == "x-" + json.loads((root / "trackers" / "logged.json").read_text())["id"]
    values = told_by_trackio(root, "get", "metric", "--run", run, "--metric", name)["values"]
    return [(value["step"], round(value["value"], 4)) for value in values]


def told_by_trackio(root: Path, *words: str) -> Any:
    call = [sys.executable, "-m", "trackio.cli", *words, "--project", "prefloop", "--json"]
    environment = os.environ | {"TRACKIO_DIR": str(root / "trackers" / "trackio")}
    return json.loads(subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.whole
@pytest.mark.parametrize(("kind", "points"), [("mlflow", mlflow_points), ("trackio", trackio_points)])
def test_what_a_killed_process_logged_last_is_not_logged_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, points: Callable[[Path, str], list[tuple[int, float]]]
) -> None:
    # Not imported here: trackio reads its folder's variable once.
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed: trackio asks for a Pillow below 13, constraints.txt pins 13")
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    run = RunFolder(tmp_path)
    evaluate(run, 0, 1.0)
    log = training(run, 1)
    for number in (1, 2):
        log.add(replace(STEP, step=number, loss=number / 10))
    killed = Trackers(run, config(kind)).__enter__()
    log.add(replace(STEP, step=3, loss=0.3))
    with monkeypatch.context() as patched:
        patched.setattr(Trackers, "_save", lambda self: None)
        killed.follow()
    for tracker in killed._open:
        tracker.finish()
    assert json.loads((tmp_path / "trackers" / "logged.json").read_text())["steps"] == {"1": 2}
    with Trackers(run, config(kind)) as trackers:
        run.stage(1, "policy").begin(KEY).commit(1, {})
        evaluate(run, 1, 2.0)
        trackers.follow()
        training(run, 2).add(replace(STEP, loss=0.9))
    assert points(tmp_path, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.9)]
    assert points(tmp_path, "round/reward") == [(0, 1.0), (3, 2.0)]


def wandb_history(file: Path) -> list[dict[str, float]]:
    """The history in a file of wandb's: records in LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 1: a whole record; 4: the last part of one.
        if kind in (1, 4):
            record: Any = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                kept = {name: value for name, value in items.items() if name in ("round/reward", "train/loss")}
                found.append({"step": record.history.step.num, **kept})
    return found


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trackers: wandb is not installed \(pip install 'prefloop\[wandb\]'\)"):
        require_trackers(config("wandb"))


def test_without_trackers_nothing_is_made(tmp_path: Path) -> None:
    with Trackers(RunFolder(tmp_path), config()) as trackers:
        trackers.follow()
    assert not list(tmp_path.iterdir())


def test_a_state_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "logged.json").write_text("[]")
    with (
        pytest.raises(UserError, match=r"logged.json: not readable .*to log everything again"),
        Trackers(RunFolder(tmp_path), config("tensorboard")),
    ):
        pass
