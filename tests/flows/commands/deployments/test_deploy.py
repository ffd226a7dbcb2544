"""Deployments for real: ``prefloop up``, schedules that fire, and what Prefect's UI asks of the server's API."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.prefect_api.access import Api
from flows.run_folder.approvals import read_approval, read_decision
from flows.run_folder.growth import ADDED
from pipeline.config.files import load_config
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from tests.support.browser import CHROMIUM, Browser
from tests.support.places import ROOT
from tests.support.prefloop_up import Up, started_up
from tests.support.readme import commands
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole


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
    (folder / "configs").symlink_to(ROOT / "configs")
    with started_up(folder) as started:
        yield started


@pytest.fixture(scope="module")
def often(up: Up) -> str:
    """A deployment that fires every 15 seconds, which is more often than a run takes."""
    done = up.prefloop("deploy", "tiny.yaml", "--name", "often", "--interval", "15s")
    assert done.returncode == 0, done.stderr
    assert "each adds 1 round" in done.stdout and "/deployments/deployment/" in done.stdout
    return "iterative/often"


def test_two_firings_add_a_round_each_and_what_fires_in_between_is_skipped(up: Up, often: str) -> None:
    def two_complete() -> list[dict[str, Any]] | None:
        runs = up.runs(often)
        return runs if [run["state"]["type"] for run in runs].count("COMPLETED") >= 2 else None

    runs = up.until(two_complete)
    up.api.post(f"/deployments/{up.deployment(often)['id']}/pause_deployment").raise_for_status()
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


def test_a_run_is_stopped_in_the_ui_and_started_again_with_other_parameters(up: Up, often: str) -> None:
    for run in up.runs(often):
        up.wait_for(run["id"], "COMPLETED", "CANCELLED")
    root = up.folder / "runs" / "tiny"
    # A third firing may have begun before the schedule was paused.
    next_round = RunFolder(root).rounds()[-1] + 1
    with (up.folder / "prompts.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "a dog ran to the barn"}\n')
    flow_run = up.start(often, rounds_more=3)
    up.wait_for(flow_run, "RUNNING")
    up.until(lambda: up.trainers())
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    up.api.post(f"/flow_runs/{flow_run}/set_state", json=cancelling).raise_for_status()
    up.wait_for(flow_run, "CANCELLED")
    up.until(lambda: not up.trainers())
    # Not of the same round: it may have got to its pairs before it was cancelled.
    parameters = {"rounds_more": 0, "until": f"{next_round + 1}:samples"}
    again = up.wait_for(up.start(often, **parameters), "COMPLETED", "FAILED", "CRASHED")
    assert again["state"]["type"] == "COMPLETED"
    assert RunFolder(root).stage(next_round, ADDED).require().rows == 1
    assert RunFolder(root).stage(next_round + 1, "samples").manifest() is not None
    assert not RunFolder(root).stage(next_round + 1, "pairs").folder.exists()


@pytest.mark.parametrize(
    "wrong", [{"rounds_more": -1}, {"until": "1:sampling"}, {"settings": ["no value"]}, {"run_dir": ""}]
)
def test_the_server_refuses_parameters_that_the_form_would_mark(up: Up, often: str, wrong: dict[str, Any]) -> None:
    address = f"/deployments/{up.deployment(often)['id']}/create_flow_run"
    assert up.api.post(address, json={"parameters": wrong}).status_code in (409, 422)


def test_a_mistake_ends_the_flow_run_with_the_message_of_the_command_line(up: Up, often: str) -> None:
    run = up.wait_for(up.start(often, settings=["training.learning_rate=1.0"]), "FAILED", "COMPLETED", "CRASHED")
    assert run["state"]["type"] == "FAILED"
    assert "training.learning_rate: 0.003 -> 1.0" in run["state"]["message"]


def test_no_key_is_in_what_the_server_holds(up: Up, often: str) -> None:
    deployment = up.deployment(often)
    assert deployment["job_variables"]["working_dir"] == str(up.folder)
    held = b"".join(file.read_bytes() for file in (up.folder / "prefect").glob("*.db*"))
    assert b"often" in held and b"a-key-that-nobody-must-see" not in held


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
    assert not up.trainers() and read_decision(run, 1) is not None
    said = up.prefloop("approve", run.root, "--decision", "roll_back", "--by", "Ada", "--reason", "looked at it")
    assert said.returncode == 0 and "goes on" in said.stdout
    assert not up.deployment(name)["paused"]

    # The form is there when the deployment has paused.
    assert up.until(lambda: waits_for(2)) and up.until(lambda: up.deployment(name)["paused"])
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


def test_firings_missed_in_an_outage_are_caught_up_one_after_another_or_skipped(up: Up) -> None:
    """Of a pool whose worker was away for a day; a firing is as short as it can be: it reads the data."""
    names = {missed: f"iterative/{missed}" for missed in ("skip", "catch-up")}
    for missed, name in names.items():
        options = ("--interval", "12h", "--missed", missed, "--pool", "away", "--run-dir", missed)
        assert up.prefloop("deploy", "tiny.yaml", "--name", missed, *options).returncode == 0
        found = up.deployment(name)
        short = {"parameters": {**found["parameters"], "until": "0:data"}}
        up.api.patch(f"/deployments/{found['id']}", json=short).raise_for_status()
    up.until(lambda: all(len(up.firings(name)) >= 2 for name in names.values()))
    passed = [run for name in names.values() for run in up.firings(name)[:2]]
    up.make_late(passed)
    command = [sys.executable, "-m", "flows", "serve", "--pool", "away"]
    with (up.folder / "away.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=up.folder, env=up.environment, stdout=log, stderr=log)
    try:
        for flow_run in passed:
            up.wait_for(flow_run["id"], "COMPLETED", "CANCELLED", "FAILED", "CRASHED")
    finally:
        worker.terminate()
        worker.wait(90)
    skipped, caught_up = (up.firings(name)[:2] for name in names.values())
    assert {run["state"]["type"] for run in skipped} == {"CANCELLED"}
    assert any("skipped: this firing was due at" in run["state"]["message"] for run in skipped)
    assert not (up.folder / "skip").exists()
    assert [run["state"]["type"] for run in caught_up] == ["COMPLETED", "COMPLETED"]
    first, second = sorted(caught_up, key=lambda run: str(run["start_time"]))
    assert first["end_time"] <= second["start_time"]
    assert RunFolder(up.folder / "catch-up").stage(0, "data").manifest() is not None


def test_the_command_of_the_readme_registers_a_schedule(up: Up) -> None:
    (line,) = commands("prefloop deploy")
    done = up.prefloop(*shlex.split(line)[1:])
    assert done.returncode == 0, done.stderr
    found = up.deployment("iterative/nightly")
    assert "each adds 1 round" in done.stdout and found["parameters"]["rounds_more"] == 1
    schedules = [(one["schedule"]["cron"], one["schedule"]["timezone"], one["active"]) for one in found["schedules"]]
    assert schedules == [("0 2 * * *", "Europe/Berlin", True)]
    up.api.delete(f"/deployments/{found['id']}").raise_for_status()


def test_the_commands_for_work_pools_of_ones_own_run_a_deployment(up: Up) -> None:
    create, deploy, work = ([sys.executable, "-m", *shlex.split(line)] for line in commands("prefect"))
    environment = {**up.environment, "PWD": str(up.folder), **Api(str(up.api.base_url), up.secret).environment()}
    for command in (create, deploy):
        done = subprocess.run(command, cwd=up.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    job = {"run_dir": "pooled", "config": ["tiny.yaml"], "until": "0:data"}
    flow_run = up.start("iterative/process", **job)
    with (up.folder / "pool.log").open("wb") as log:
        worker = subprocess.Popen(work, cwd=up.folder, env=environment, stdout=log, stderr=log)
    try:
        ended = up.wait_for(flow_run, "COMPLETED", "CANCELLED", "FAILED", "CRASHED")
    finally:
        worker.terminate()
        worker.wait(90)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert RunFolder(up.folder / "pooled").stage(0, "data").manifest() is not None
    up.api.delete(f"/deployments/{up.deployment('iterative/process')['id']}").raise_for_status()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_form_of_a_deployment_is_in_the_page(up: Up, often: str, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{up.port}/deployments/deployment/{up.deployment(often)['id']}/run"
    with Browser(tmp_path) as browser:
        browser.sign_in(f"http://127.0.0.1:{up.port}", up.secret)
        browser.open(
            address, "Rounds to add", "Run folder", "How many rounds this run adds", "A stage of the config's rounds"
        )


def test_killing_up_ends_server_worker_and_runs(up: Up, often: str) -> None:
    up.start(often, rounds_more=5)
    up.until(lambda: up.trainers())
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 6
    up.process.kill()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert load_config([up.folder / "runs" / "tiny" / "config.yaml"]).rounds > 2
    refused = up.prefloop("deploy", "tiny.yaml", "--name", "late")
    assert refused.returncode == 2 and "prefloop up" in refused.stderr
