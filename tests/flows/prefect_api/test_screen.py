"""What people see of a run in Prefect's UI: a stage that failed, the run that went on, and its rounds, in a browser.

Pictures go to the folder that SCREENSHOTS names, for whoever wants to look.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.prefect_api.events import run_resource
from flows.report.gather import round_facts
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.safe_text import visible
from pipeline.sampling.ports import free_port
from pipeline.storage.run_folder import RunFolder
from tests.support.browser import CHROMIUM, Browser
from tests.support.places import ROOT
from tests.support.prefloop_up import basic, secret_in
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole

TITLE, DONE_TITLE = "tiny · iterative · 2 rounds", "tiny · promote · iterative · 2 rounds"
SECRET = "correct-horse-battery-staple"
REWARDS = """
import os, sys, traceback
from pathlib import Path

def reward(prompt, response, answer):
    print("WARNING: the key is", os.environ["JUDGE_KEY"], file=sys.stderr, flush=True)
    if Path(__file__).with_name("broken").exists():
        try:
            raise MemoryError("no room left")
        except MemoryError:
            traceback.print_exc()
            os._exit(3)
    return -abs(len(response.split()) - 6.0)
"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Screened:
    """A run that failed once and then went on, and the server that has seen it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "tiny"
        self.ui = f"http://127.0.0.1:{free_port()}"
        self.server: subprocess.Popen[bytes]
        self.env = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT), "JUDGE_KEY": SECRET}

    def prefloop(self, *arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows", *map(str, arguments)]
        return subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, timeout=800, check=False
        )

    def ask(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.ui}/api/{kind}/filter", json=filters, timeout=60, auth=basic(self.secret))
        found: list[dict[str, Any]] = answer.raise_for_status().json()
        return found

    @property
    def secret(self) -> str:
        return secret_in(self.folder / "prefect")

    @property
    def flow_runs(self) -> list[dict[str, Any]]:
        return self.ask("flow_runs", sort="START_TIME_ASC")

    def logs(self, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
        return self.ask("logs", logs={"flow_run_id": {"any_": [flow_run["id"]]}})

    def artefacts(self, flow_run: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """By what the key ends with, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        listed = self.ask("artifacts", flow_runs={"id": {"any_": [flow_run["id"]]}})
        for artefact in sorted((one for one in listed if one["key"]), key=lambda one: str(one["created"])):
            found.setdefault(artefact["key"].rpartition("-")[2], []).append(artefact)
        return found


def write_job(folder: Path) -> Path:
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the <b id=owned>cat</b> sat on mat {number}"} for number in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "broken").touch()
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
name: tiny
mode: iterative
rounds: 2
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 12}}
sampler: {{kind: transformers}}
sampling: {{n: 3, max_tokens: 12}}
scorer: {{kind: function, file: {folder / "rewards.py"}, name: reward}}
training: {{learning_rate: 3.0e-3, batch_size: 4}}
"""
    )
    return file


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screened]:
    made = Screened(tmp_path_factory.mktemp("screen"))
    config = write_job(made.folder)
    command = [sys.executable, "-m", "flows", "ui", "--port", made.ui.rpartition(":")[2]]
    made.server = subprocess.Popen(command, env=made.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        note = made.folder / "prefect" / "prefloop.url"
        deadline = time.monotonic() + 400
        while not note.is_file():
            assert made.server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        failed = made.prefloop("run", config, "--run-dir", made.run)
        assert failed.returncode == 1 and "exit code 3" in failed.stderr, failed.stderr
        (made.folder / "broken").unlink()
        done = made.prefloop("run", config, "--run-dir", made.run)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.server.terminate()
        made.server.wait()


def test_runs_have_names_and_tags_and_tasks_have_no_tags(screened: Screened) -> None:
    failed, done = screened.flow_runs
    assert (failed["state_type"], done["state_type"]) == ("FAILED", "COMPLETED")
    assert (failed["name"], done["name"]) == (TITLE, DONE_TITLE)
    tags = ["gate:promote", "loss:dpo", "mode:iterative", "run:tiny", "sampler:transformers", "scorer:function"]
    assert sorted(done["tags"]) == tags
    tasks = screened.ask("task_runs", flow_runs={"id": {"any_": [done["id"]]}})
    names = {task["name"] for task in tasks}
    assert {"round 0 - start policy", "round 1 - samples", "round 2 - train - dpo beta=0.1"} <= names
    assert all(name.isascii() for name in names)
    lines = [line["message"] for line in screened.logs(done) if line["message"].startswith("round ")]
    assert [line[: len("round 0: reward ")] for line in lines] == [f"round {n}: reward " for n in (0, 1, 2)]
    assert "wins over the start" in lines[2] and "gate: " in lines[2]
    assert [task["tags"] for task in tasks] == [[]] * len(tasks)


def test_a_failed_stage_shows_the_child_s_last_words_and_no_key(screened: Screened) -> None:
    failed, done = screened.flow_runs
    logs = screened.logs(failed)
    said = [line for line in logs if line["level"] == 40 and "trainer: Traceback" in line["message"]]
    assert said and said[0]["message"].endswith("MemoryError: no room left")
    (task,) = screened.ask("task_runs", task_runs={"id": {"any_": [said[0]["task_run_id"]]}})
    assert task["name"] == "round 0 - evaluation" and task["state_type"] == "FAILED"
    warnings = [line["message"] for line in [*logs, *screened.logs(done)] if line["level"] == 30]
    assert "trainer: WARNING: the key is [hidden]" in warnings
    everything = json.dumps([screened.logs(failed), screened.logs(done), screened.flow_runs])
    assert SECRET not in everything
    # Said with every response, shown once a run.
    assert sum("the key is" in line["message"] for line in screened.logs(done)) == 1


def test_progress_has_rates_and_ends_complete(screened: Screened) -> None:
    failed, done = screened.flow_runs
    ended = {one["description"].partition(":")[0]: one for one in screened.artefacts(done)["progress"]}
    for stage, unit in [("samples", "prompts"), ("labels", "prompts"), ("train - dpo beta=0.1", "steps")]:
        progress = ended[f"round 2 - {stage}"]
        assert progress["data"] == 100 and progress["type"] == "progress" and progress["task_run_id"]
        assert f" {unit}/s · complete" in progress["description"]
    assert not any("stopped" in one["description"] for one in ended.values())
    assert failed["id"] != done["id"]


def test_artefacts_have_one_key_a_run_and_a_version_a_round(screened: Screened) -> None:
    failed, done = screened.flow_runs
    before, after = screened.artefacts(failed), screened.artefacts(done)
    assert before.keys() == {"progress"}
    assert [one["description"] for one in after["round"]] == [f"tiny: round {n} of 2" for n in (0, 1, 2)]
    assert [len(json.loads(one["data"])) for one in after["rounds"]] == [1, 2, 3]
    assert len(after["comparisons"]) == 2 and (screened.run / "report.html").as_uri() in after["report"][0]["data"]
    keys = {one["key"] for found in (before, after) for versions in found.values() for one in versions}
    (prefix,) = {key.rpartition("-")[0] for key in keys}
    assert prefix.startswith("tiny-") and len(keys) == 5


def test_events_tell_of_both_flow_runs_and_each_round(screened: Screened) -> None:
    failed, done = screened.flow_runs
    asked = {"resource": {"id": [run_resource(screened.run)["prefect.resource.id"]]}, "order": "ASC"}
    answer = httpx.post(f"{screened.ui}/api/events/filter", json={"filter": asked}, auth=basic(screened.secret))
    told = answer.raise_for_status().json()["events"]
    completed = [event["payload"] for event in told if event["event"] == "prefloop.round.completed"]
    rounds = json.loads(screened.prefloop("show", screened.run, "--json").stdout)
    assert [one["round"] for one in completed] == [0, 1, 2]
    assert [one["reward"] for one in completed] == [one["reward"] for one in rounds]
    assert completed[2]["reward_change"] == pytest.approx(rounds[2]["reward"] - rounds[1]["reward"])
    assert told[-1]["event"] == "prefloop.run.completed"
    assert told[-1]["payload"] == {"rounds": 2, "report": str(screened.run / "report.html")}
    related = (one for event in told for one in event["related"] if one["prefect.resource.role"] == "flow-run")
    (flow_run,) = {one["prefect.resource.id"] for one in related}
    assert flow_run == f"prefect.flow-run.{done['id']}" != f"prefect.flow-run.{failed['id']}"
    assert SECRET not in answer.text


@pytest.fixture(scope="module")
def browser(screened: Screened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.sign_in(screened.ui, screened.secret)
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@needs_chromium
def test_the_page_of_the_run(screened: Screened, browser: Browser, pictures: Path) -> None:
    _, done = screened.flow_runs
    tags = ("sampler:transformers", "[hidden]")
    browser.open(f"{screened.ui}/runs/flow-run/{done['id']}", DONE_TITLE, "Completed", "round 2 - evaluation", *tags)
    browser.picture(pictures / "run.png")
    browser.click("Artifacts")
    browser.wait("-rounds", "tiny: round 2 of 2", "-comparisons", "-report", "Task runs")
    browser.picture(pictures / "run_artefacts.png", 1600)


@needs_chromium
def test_the_round_table_is_on_its_page(screened: Screened, browser: Browser, pictures: Path) -> None:
    table = screened.artefacts(screened.flow_runs[1])["rounds"][-1]
    rounds = json.loads(screened.prefloop("show", screened.run, "--json").stdout)
    # The headings are there before the rows.
    rewards = [f"{one['reward']:.3f}" for one in rounds]
    browser.open(f"{screened.ui}/artifacts/artifact/{table['id']}", "3 Items", "wins vs start", *rewards)
    rows = browser.run("[...document.querySelectorAll('tr')].map(row => row.innerText.split('\\t').map(c => c.trim()))")
    headings, *cells = rows
    assert headings[:4] == ["round", "gate", "reward", "wins vs start"]
    assert len(rounds) == 3 and [[row[0], row[2]] for row in cells] == [
        [str(n), reward] for n, reward in enumerate(rewards)
    ]
    assert cells[2][3].startswith(f"{rounds[2]['win_rate_vs_start']:.1%} (")
    browser.picture(pictures / "rounds.png")


@needs_chromium
def test_the_round_and_its_comparisons_are_on_their_pages(screened: Screened, browser: Browser, pictures: Path) -> None:
    config: RunConfig = load_config([screened.run / "config.yaml"])
    facts = round_facts(RunFolder(screened.run), config, 2)
    made = screened.artefacts(screened.flow_runs[1])
    page = browser.open(f"{screened.ui}/artifacts/artifact/{made['round'][-1]['id']}", "round 2 of 2", "Stages")
    assert f"{facts.reward:.3f}" in page and "engine–trainer gap" in page and "evaluation_samples" in page
    browser.picture(pictures / "round.png", 2000)
    shown = browser.open(f"{screened.ui}/artifacts/artifact/{made['comparisons'][-1]['id']}", "10: score")
    assert len(facts.comparisons) == 10
    for one in facts.comparisons:
        for text in (one.prompt, one.before, one.after):
            assert "".join(visible(text).split()) in "".join(shown.split())
    # The prompts' own mark-up is text, and nothing else.
    assert "<b id=owned>cat</b>" in shown and browser.run("document.getElementById('owned') === null")
    browser.picture(pictures / "comparisons.png", 1600)


@needs_chromium
def test_the_page_of_the_failed_stage(screened: Screened, browser: Browser, pictures: Path) -> None:
    failed, _ = screened.flow_runs
    tasks = screened.ask("task_runs", flow_runs={"id": {"any_": [failed["id"]]}})
    (task,) = [task for task in tasks if task["state_type"] == "FAILED"]
    browser.open(f"{screened.ui}/runs/task-run/{task['id']}", "round 0 - evaluation", "ERROR", "no room left")
    browser.picture(pictures / "failed_stage.png")


def test_a_run_whose_server_is_lost_goes_on_with_another(screened: Screened) -> None:
    """Last, since it ends the server."""
    run = screened.folder / "lost"
    config = screened.folder / "tiny.yaml"
    command = [sys.executable, "-m", "flows", "run", str(config), "--run-dir", str(run), "--until", "0:evaluation"]
    env = {**screened.env, "PREFECT_CLIENT_MAX_RETRIES": "2"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while not (run / "round_000" / "data").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    screened.server.terminate()
    screened.server.wait()
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "server is lost" in said and "Traceback" not in said
    assert (run / "round_000" / "evaluation" / "metrics.json").is_file()
