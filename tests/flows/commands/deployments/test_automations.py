"""Automations of a deployment, on a real server: a run that died goes on by itself, and new data starts one."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID, uuid4

import psutil
import pytest

from flows.prefect_api.events import BudgetReached, deployment_resource, run_resource
from flows.run_folder.lease import FLOW_RUN_FILE
from pipeline.storage.run_folder import RunFolder
from tests.support.prefloop_up import Up, started_up
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("automations")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(
        f"name: tiny\nmode: iterative\nrounds: 5\npolicy: {{path: {model}}}\nprompts: {{path: prompts.jsonl}}\n"
        "held_out: {prompts: 4}\nprompts_per_round: 8\nsampler: {kind: transformers}\n"
        "sampling: {n: 3, max_tokens: 8}\nscorer: {kind: length, target_words: 12}\n"
        "training: {learning_rate: 3.0e-3, batch_size: 8}\ngate: null\n"
    )
    with started_up(folder) as started:
        done = started.prefloop("deploy", "tiny.yaml", "--name", "lone", "--automations", "--rounds-more", "4")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("automation 'iterative/lone: ") == 3
        yield started


def workers_of(up: Up) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(up.process.pid).children(recursive=True)
        if "worker" in process.cmdline() and "pipeline.sampling.watchdog" not in process.cmdline()
    ]


def test_a_run_whose_worker_and_process_are_killed_goes_on_by_itself(up: Up) -> None:
    flow_run = up.start("iterative/lone")
    run = RunFolder(up.folder / "runs" / "tiny")
    up.until(lambda: run.stage(1, "samples").manifest())
    writer = json.loads((run.root / FLOW_RUN_FILE).read_text())["pid"]
    killed = time.monotonic()
    for process in workers_of(up):
        process.kill()
    os.kill(writer, signal.SIGKILL)

    def goes_on() -> bool:
        try:
            return bool(json.loads((run.root / FLOW_RUN_FILE).read_text())["pid"] != writer)
        except ValueError:
            return False

    up.until(goes_on)
    # Two minutes on a quiet machine; a busy one may take longer, and a run that is never noticed fails above.
    print(f"noticed, and went on, after {time.monotonic() - killed:.0f} s")
    ended = up.wait_for(flow_run, "COMPLETED", "FAILED", "CANCELLED")
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert ended["run_count"] == 2
    assert "the worker ended with exit code" in up.log.read_text()
    assert [number for number in run.rounds() if run.stage(number, "evaluation").manifest()] == [0, 1, 2, 3, 4]
    about = {"id": [run_resource(run.root)["prefect.resource.id"]]}
    asked = {"filter": {"resource": about, "event": {"name": ["prefloop.worker.stale"]}}}
    (stale,) = up.until(lambda: up.api.post("/events/filter", json=asked).raise_for_status().json()["events"])
    assert (stale["payload"]["pid"], stale["payload"]["flow_run"]) == (writer, flow_run)


def test_a_run_whose_worker_is_killed_before_it_begins_goes_on(up: Up) -> None:
    flow_run = up.start("iterative/lone", rounds_more=0)
    up.wait_for(flow_run, "PENDING", "RUNNING")
    for process in workers_of(up):
        process.kill()
    ended = up.wait_for(flow_run, "COMPLETED", "FAILED", "CANCELLED")
    assert ended["state"]["type"] == "COMPLETED", ended["state"]


class Notified(BaseHTTPRequestHandler):
    """Keeps what a webhook is sent."""

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.said.append(said)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def spend_budget(up: Up, name: str) -> None:
    event = BudgetReached(2, "labels", 7, 1.5)
    sent = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": event.event,
        "resource": run_resource(up.folder),
        "related": [deployment_resource(UUID(up.deployment(name)["id"]), name)],
        "payload": {"round": event.round, "stage": event.stage, "unasked": event.unasked, "cost": event.cost},
        "id": str(uuid4()),
    }
    up.api.post("/events", json=[sent]).raise_for_status()


def test_people_are_told_of_a_run_that_fails(up: Up) -> None:
    refused = up.prefloop("deploy", "tiny.yaml", "--name", "told", "--notify", "custom-webhook/nobody")
    assert refused.returncode == 2 and "--notify: custom-webhook/nobody" in refused.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), Notified)
    server.said = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        kind = up.api.get("/block_types/slug/custom-webhook").raise_for_status().json()
        schemas = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
        schema = up.api.post("/block_schemas/filter", json=schemas).raise_for_status().json()[0]
        url = f"http://127.0.0.1:{server.server_port}"
        block = {"name": "n", "url": url, "method": "POST", "json_data": {"text": "{{subject}} | {{body}}"}}
        made = {"name": "ops", "data": block, "block_schema_id": schema["id"], "block_type_id": kind["id"]}
        up.api.post("/block_documents/", json=made).raise_for_status()
        done = up.prefloop("deploy", "tiny.yaml", "--name", "told", "--notify", "custom-webhook/ops")
        assert done.returncode == 0, done.stderr
        assert "automation 'iterative/told: tell people'" in done.stderr
        flow_run = up.start("iterative/told", config=[], run_dir=str(up.folder / "nowhere"))
        assert up.wait_for(flow_run, "FAILED", "COMPLETED", "CRASHED")["state"]["type"] == "FAILED"
        up.until(lambda: server.said)  # type: ignore[attr-defined]
        spend_budget(up, "iterative/told")
        up.until(lambda: len(server.said) > 1)  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
    said, spent = (json.loads(one)["text"] for one in server.said)  # type: ignore[attr-defined]
    assert said.startswith("prefloop iterative/told: prefect.flow-run.Failed | ") and "not a run folder" in said
    # The address of its page, to press Resume there.
    assert f"http://127.0.0.1:{up.port}/runs/flow-run/{flow_run}" in said
    assert "round 2, labels: 7 questions unasked, cost 1.5" in spent


def test_a_run_starts_when_prompts_arrive(up: Up) -> None:
    before = len(up.runs("iterative/lone"))
    time.sleep(15)
    assert len(up.runs("iterative/lone")) == before
    with (up.folder / "prompts.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "a dog ran to the barn"}\n')
    up.until(lambda: len(up.runs("iterative/lone")) > before)
    newest = up.runs("iterative/lone")[-1]
    assert newest["created_by"]["type"] == "AUTOMATION"
    assert up.wait_for(newest["id"], "COMPLETED", "FAILED", "CRASHED")["state"]["type"] == "COMPLETED"


def test_a_run_that_crashes_again_and_again_fails(up: Up) -> None:
    flow_run = up.start("iterative/lone")
    for _ in range(6):
        crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
        up.api.post(f"/flow_runs/{flow_run}/set_state", json=crashed).raise_for_status()
    ended = up.wait_for(flow_run, "COMPLETED", "FAILED", "CANCELLED")
    assert "crashed 6 times within an hour" in ended["state"]["message"]
