"""Deployments for real: ``prefloop up``, schedules that fire, and what Prefect's UI asks of the server's API."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from flows.approvals import read_approval, read_decision
from pipeline.configfile import load_config
from pipeline.rows import read_groups
from pipeline.store import RunFolder
from tests.browser import CHROMIUM, Browser
from tests.tiny_model import save_tiny_model

ROOT = Path(__file__).parents[2]
Found = TypeVar("Found")


class Patient(httpx.Client):
    """Asks again while the server's database is locked, as Prefect's own client does."""

    def request(self, *arguments: Any, **named: Any) -> httpx.Response:
        for _ in range(60):
            response = super().request(*arguments, **named)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        return response


@dataclass
class Up:
    """``prefloop up`` in a process of its own, and a folder to run commands in."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    environment: dict[str, str]
    port: int
    log: Path
    api: Patient

    def prefloop(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows", *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=200, check=False
        )

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/deployments/name/{name}").raise_for_status().json()
        return found

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The deployment's runs that a worker has seen, in the order in which they are due."""
        asked = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = self.api.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return [run for run in runs if run["state"]["type"] != "SCHEDULED"]

    def start(self, name: str, **parameters: object) -> str:
        """What the UI's Custom run sends."""
        asked = self.api.post(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", json={"parameters": parameters}
        )
        return str(asked.raise_for_status().json()["id"])

    def wait_for(self, flow_run: str, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api.get(f"/flow_runs/{flow_run}").raise_for_status().json()
            return run if run["state"]["type"] in states else None

        return self.until(reached)

    def until(self, ask: Callable[[], Found | None]) -> Found:
        deadline = time.monotonic() + 270
        while time.monotonic() < deadline:
            found = ask()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"not within four minutes:\n{self.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(
        f"name: tiny\nmode: iterative\nrounds: 5\npolicy: {{path: {model}}}\nprompts: {{path: prompts.jsonl}}\n"
        "held_out: {prompts: 4}\nprompts_per_round: 8\nsampler: {kind: transformers}\n"
        "sampling: {n: 3, max_tokens: 8}\nscorer: {kind: length, target_words: 12}\n"
        "training: {learning_rate: 3.0e-3, batch_size: 8}\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JUDGE_KEY": "a-key-that-nobody-must-see",
    }
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "up", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    api = Patient(base_url=f"http://127.0.0.1:{port}/api", timeout=200)
    started = Up(process, folder, environment, port, log, api)
    try:
        started.until(lambda: "Prefect UI" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield started
    finally:
        api.close()
        process.send_signal(signal.SIGTERM)
        process.wait(90)


@pytest.fixture(scope="module")
def nightly(up: Up) -> str:
    """A deployment that fires every 15 seconds, which is more often than a run takes."""
    done = up.prefloop("deploy", "tiny.yaml", "--name", "nightly", "--interval", "15s")
    assert done.returncode == 0, done.stderr
    assert "each adds 1 round" in done.stdout and "/deployments/deployment/" in done.stdout
    return "iterative/nightly"


def test_two_firings_add_a_round_each_and_what_fires_in_between_is_skipped(up: Up, nightly: str) -> None:
    def two_complete() -> list[dict[str, Any]] | None:
        runs = up.runs(nightly)
        return runs if [run["state"]["type"] for run in runs].count("COMPLETED") >= 2 else None

    runs = up.until(two_complete)
    up.api.post(f"/deployments/{up.deployment(nightly)['id']}/pause_deployment").raise_for_status()
    complete = [run for run in runs if run["state"]["type"] == "COMPLETED"]
    skipped = [run for run in runs if run["state"]["type"] == "CANCELLED"]
    assert all(run["auto_scheduled"] for run in runs)
    assert complete[0]["end_time"] < complete[1]["start_time"]
    assert skipped and {run["state"]["message"] for run in skipped} == {"Deployment concurrency limit reached."}
    assert {run["state"]["type"] for run in runs} <= {"COMPLETED", "CANCELLED", "RUNNING", "PENDING"}
    run = RunFolder(up.folder / "runs" / "tiny")
    first, second = (run.stage(number, "evaluation").require() for number in (1, 2))
    assert complete[0]["start_time"] < first.finished < complete[1]["start_time"] < second.finished
    prompts = [{row.prompt.id for row in read_groups(run.stage(number, "samples").folder)} for number in (1, 2)]
    assert len(prompts[0]) == 8 and prompts[0].isdisjoint(prompts[1])


def test_a_run_is_stopped_in_the_ui_and_started_again_with_other_parameters(up: Up, nightly: str) -> None:
    for run in up.runs(nightly):
        up.wait_for(run["id"], "COMPLETED", "CANCELLED")
    root = up.folder / "runs" / "tiny"
    flow_run = up.start(nightly, rounds_more=3)
    up.wait_for(flow_run, "RUNNING")
    up.until(lambda: trainers(root))
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    up.api.post(f"/flow_runs/{flow_run}/set_state", json=cancelling).raise_for_status()
    up.wait_for(flow_run, "CANCELLED")
    up.until(lambda: not trainers(root))
    again = up.wait_for(up.start(nightly, rounds_more=0, until="3:samples"), "COMPLETED", "FAILED", "CRASHED")
    assert again["state"]["type"] == "COMPLETED"
    assert RunFolder(root).stage(3, "samples").manifest() is not None
    assert not RunFolder(root).stage(3, "pairs").folder.exists()


def trainers(root: Path) -> list[int]:
    """Processes that work for a run of ``up``; their names hold its Prefect home through the environment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "flows.trainer_child" in process.info["cmdline"] and process.cwd() == str(root.parents[1]):
                found.append(process.pid)
        except (psutil.Error, TypeError):
            continue
    return found


@pytest.mark.parametrize(
    "wrong", [{"rounds_more": -1}, {"until": "1:sampling"}, {"settings": ["no value"]}, {"run_dir": ""}]
)
def test_the_server_refuses_parameters_that_the_form_would_mark(up: Up, nightly: str, wrong: dict[str, Any]) -> None:
    address = f"/deployments/{up.deployment(nightly)['id']}/create_flow_run"
    assert up.api.post(address, json={"parameters": wrong}).status_code in (409, 422)


def test_a_mistake_ends_the_flow_run_with_the_message_of_the_command_line(up: Up, nightly: str) -> None:
    run = up.wait_for(up.start(nightly, settings=["training.learning_rate=1.0"]), "FAILED", "COMPLETED", "CRASHED")
    assert run["state"]["type"] == "FAILED"
    assert "training.learning_rate: 0.003 -> 1.0" in run["state"]["message"]


def test_no_key_is_in_what_the_server_holds(up: Up, nightly: str) -> None:
    deployment = up.deployment(nightly)
    assert deployment["job_variables"]["working_dir"] == str(up.folder)
    held = b"".join(file.read_bytes() for file in (up.folder / "prefect").glob("*.db*"))
    assert b"nightly" in held and b"a-key-that-nobody-must-see" not in held


def test_a_run_that_its_gate_pauses_goes_on_when_the_command_or_the_form_has_answered(up: Up) -> None:
    """Any training breaks these limits, and what is rolled back from is measured from the start again."""
    far = ("rounds=2", "training.learning_rate=3e-2", "evaluation.samples=4", "gate.max_kl=1e-6", "gate.min_prompts=2")
    done = up.prefloop("deploy", "tiny.yaml", *far, "--name", "asking", "--run-dir", "asked")
    assert done.returncode == 0, done.stderr
    run, name = RunFolder(up.folder / "asked"), "iterative/asking"
    flow_run = up.start(name)

    def waits_for(round_: int) -> bool:
        state = up.wait_for(flow_run, "PAUSED", "COMPLETED", "FAILED", "CRASHED")["state"]
        assert state["name"] == "Suspended", state
        return f"round {round_} waits for a person" in state["message"] and "KL to the start is" in state["message"]

    assert waits_for(1) and up.until(lambda: up.deployment(name)["paused"])
    assert not trainers(run.root) and read_decision(run, 1) is not None
    said = up.prefloop("approve", run.root, "--decision", "roll_back", "--by", "Ada", "--reason", "looked at it")
    assert said.returncode == 0 and "goes on" in said.stdout
    assert not up.deployment(name)["paused"]

    assert up.until(lambda: waits_for(2))
    form = up.api.get(f"/flow_runs/{flow_run}/input/suspended-round-2-schema").raise_for_status().json()
    assert form["properties"]["decision"]["enum"] == ["promote", "stop", "roll_back"]
    refused = up.api.post(f"/flow_runs/{flow_run}/resume", json={"run_input": {"decision": "maybe"}}).json()
    assert refused["status"] == "REJECT"
    answer = {"decision": "promote", "by": "Bob", "reason": "reads well"}
    assert up.api.post(f"/flow_runs/{flow_run}/resume", json={"run_input": answer}).json()["status"] == "ACCEPT"
    assert up.wait_for(flow_run, "COMPLETED", "FAILED", "CRASHED")["state"]["type"] == "COMPLETED"
    kept = [read_approval(run, round_) for round_ in (1, 2)]
    told = [(one.decision, one.by, one.reason) for one in kept if one is not None]
    assert told == [("roll_back", "Ada", "looked at it"), ("promote", "Bob", "reads well")]
    assert "round_000/policy" in run.stage(2, "samples").require().inputs
    assert not up.deployment(name)["paused"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_form_of_a_deployment_is_in_the_page(up: Up, nightly: str, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{up.port}/deployments/deployment/{up.deployment(nightly)['id']}/run"
    with Browser(tmp_path) as browser:
        browser.open(address, "Rounds to add", "Run folder", "How many rounds this run adds")


def test_killing_up_ends_server_worker_and_runs(up: Up, nightly: str) -> None:
    up.start(nightly, rounds_more=5)
    up.until(lambda: trainers(up.folder / "runs" / "tiny"))
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 6
    up.process.kill()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert load_config([up.folder / "runs" / "tiny" / "config.yaml"]).rounds > 2
    refused = up.prefloop("deploy", "tiny.yaml", "--name", "late")
    assert refused.returncode == 2 and "prefloop up" in refused.stderr
