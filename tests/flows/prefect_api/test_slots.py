"""Slots of Prefect's concurrency limits, on real servers: who waits for whom, and holders that die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.prefect_api.server import prefect_api
from flows.prefect_api.slots import SharedSlots
from pipeline.errors import RunError, UserError
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.prefloop_up import Up, started_up
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole

Span = tuple[datetime, datetime]
# A run that is killed while it holds a slot.
HOLDER = """
import sys, time
from flows.prefect_api.slots import SharedSlots
with SharedSlots({"gpu": sys.argv[1]}, lambda name: None) as slots, slots.held(["gpu"], print, lambda: None):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server of a run alone, in whose context the tests are."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFECT_HOME", str(home))
        with temporary_settings({PREFECT_HOME: home}), prefect_api(home / "server.log"):
            yield home


def active(limit: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit).active_slots


def quietly() -> None:
    """Nothing to look after."""


def test_a_second_run_waits_and_has_the_slot_once_the_first_has_freed_it(server: Path) -> None:
    told: list[str] = []
    inside = threading.Event()
    with SharedSlots({"gpu": "turns"}, lambda name: told.append(f"one frees {name}")) as one:

        def other() -> None:
            known = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: secret, PREFECT_HOME: server}
            with (
                temporary_settings(known),
                SharedSlots({"gpu": "turns"}, lambda name: told.append(f"two frees {name}")) as two,
                two.held(["gpu", "judge"], told.append, quietly),
            ):
                told.append("two works")
                inside.set()

        url, secret = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
        thread = threading.Thread(target=other)
        with one.held(["gpu"], told.append, quietly), one.held(["gpu"], told.append, quietly):
            thread.start()
            while not any("waits" in line for line in told):
                time.sleep(0.05)
            assert active("turns") == 1 and not inside.is_set()
            told.append("one works")
        thread.join()
    assert told[0] == "resources.gpu: Prefect had no concurrency limit turns; made with one slot"
    assert told[1] == "resources.gpu: waits for a slot of Prefect's concurrency limit turns"
    assert told[2:4] == ["one works", "one frees gpu"]
    assert told[4].startswith("resources.gpu: has a slot of turns, after ")
    assert told[5:] == ["two works", "two frees gpu"]
    assert active("turns") == 0


def test_the_slot_of_a_killed_process_comes_back(server: Path) -> None:
    known = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_API_AUTH_STRING": PREFECT_API_AUTH_STRING.value()}
    env = {**os.environ, **{name: str(value) for name, value in known.items()}, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, "killed"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        while "held" not in (line := holder.stdout.readline()):
            assert line, "it ended before it had the slot"
        holder.send_signal(signal.SIGKILL)
    assert active("killed") == 1
    told: list[str] = []
    with SharedSlots({"judge": "killed"}, lambda name: None) as slots, slots.held(["judge"], told.append, quietly):
        assert active("killed") == 1
    assert told[-1].startswith("resources.judge: has a slot of killed, after ")
    assert active("killed") == 0 and list((server / "concurrency_leases").glob("*-*.json")) == []


def test_a_run_that_ends_waits_no_longer(server: Path) -> None:
    waiting: list[Any] = []
    with (
        SharedSlots({"gpu": "ends"}, lambda name: None) as one,
        one.held(["gpu"], lambda line: None, quietly),
        SharedSlots({"gpu": "ends"}, lambda name: None) as two,
    ):

        def lost() -> None:
            raise RunError("the run folder is another's")

        with pytest.raises(RunError, match="is another's"), two.held(["gpu"], waiting.append, lost):
            raise AssertionError("it had the slot")
        two.__exit__(None, None, None)
        with pytest.raises(RunError, match="the run ended while it waited"), two.held(["gpu"], waiting.append, quietly):
            raise AssertionError("it had the slot")


def test_a_limit_without_slots_is_named(server: Path) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="none", limit=0))
    with (
        SharedSlots({"gpu": "none"}, lambda name: None) as slots,
        pytest.raises(UserError, match="gpu: Prefect's concurrency limit none has no slots; raise it"),
        slots.held(["gpu"], print, quietly),
    ):
        raise AssertionError("it had the slot")


def test_training_a_reward_model_waits_for_the_accelerator_like_a_stage(server: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    rows = [{"prompt": f"mat {n}", "chosen": f"the cat sat on mat {n}", "rejected": f"dog {n}"} for n in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"model.path={tmp_path / 'model'}", f"pairs.path={tmp_path / 'pairs.jsonl'}", "held_out.prompts=4"]
    known = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_API_AUTH_STRING": PREFECT_API_AUTH_STRING.value()}
    env = {**os.environ, **{name: str(value) for name, value in known.items()}, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "reward-model", "reward_model", *settings, "resources.gpu=rewarded"]
    with (
        SharedSlots({"gpu": "rewarded"}, lambda name: None) as slots,
        subprocess.Popen(
            [*command, "--run-dir", str(tmp_path / "made")], env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        ) as training,
    ):  # fmt: skip
        assert training.stderr is not None
        with slots.held(["gpu"], print, quietly):
            while "waits for a slot of Prefect's concurrency limit rewarded" not in (
                line := training.stderr.readline()
            ):
                assert line, "it ended before it waited"
            assert not (tmp_path / "made" / "metrics.json").exists()
        said = training.stderr.read()
    assert training.returncode == 0 and "resources.gpu: has a slot of rewarded" in said, said
    assert (tmp_path / "made" / "metrics.json").is_file() and active("rewarded") == 0


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    model = save_tiny_model(tmp_path / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        f"name: tiny\nmode: iterative\nrounds: 1\npolicy: {{path: {model}}}\nprompts: {{path: prompts.jsonl}}\n"
        "held_out: {prompts: 4}\nsampler: {kind: transformers}\nsampling: {n: 3, max_tokens: 8}\n"
        "scorer: {kind: length, target_words: 12}\ntraining: {learning_rate: 3.0e-3, batch_size: 8}\ngate: null\n"
        "resources: {gpu: card-0}\n"
    )
    with started_up(tmp_path) as started:
        yield started


def on_card(root: Path) -> list[Span]:
    """When each stage of a run that uses the accelerator worked."""
    run, found = RunFolder(root), []
    for number in run.rounds():
        for name in ("policy", "samples", "evaluation_samples", "evaluation"):
            manifest = run.stage(number, name).manifest()
            if manifest is not None:
                ended = datetime.fromisoformat(str(manifest.finished))
                found.append((ended - timedelta(seconds=manifest.seconds), ended))
    return found


@pytest.mark.timeout(3600)
def test_stages_of_two_runs_never_use_one_accelerator_at_once(up: Up) -> None:
    command = [sys.executable, "-m", "flows", "run", "tiny.yaml", "--run-dir"]
    piped = {"cwd": up.folder, "env": up.environment, "stderr": subprocess.STDOUT, "stdout": subprocess.PIPE}
    runs = [subprocess.Popen([*command, name], text=True, **piped) for name in ("one", "two")]  # type: ignore[call-overload]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sum("made with one slot" in log for log in said) == 1
    assert any("waits for a slot of Prefect's concurrency limit card-0" in log for log in said)
    ones, others = (on_card(up.folder / name) for name in ("one", "two"))
    assert len(ones) == len(others) == 7
    assert [(one, other) for one in ones for other in others if one[0] < other[1] and other[0] < one[1]] == []
    limit = up.api.get("/v2/concurrency_limits/card-0").raise_for_status().json()
    assert (limit["limit"], limit["active_slots"]) == (1, 0)
