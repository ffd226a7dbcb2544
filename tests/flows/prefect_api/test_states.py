"""Prefect shows of a run what is true, through a real server: cancelled, crashed, and completed without it."""

import contextvars
import json
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import Abort
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling, Running

from flows.prefect_api import states as prefect_states
from flows.prefect_api.events import run_resource
from flows.prefect_api.server import prefect_api
from flows.prefect_api.states import true_states
from flows.run_folder.lease import FLOW_RUN_FILE
from pipeline.errors import RunError

pytestmark = pytest.mark.whole


@task(name="stage", retries=0)
def stage(work: Callable[[], None]) -> None:
    work()


@flow(name="some rounds", retries=0, persist_result=False, validate_parameters=False)
def rounds(root: Path, work: Callable[[], None]) -> str:
    with true_states(root):
        stage(work)
    return "report"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    """A private server, as ``prefloop run`` starts it."""
    quiet, logging.raiseExceptions = logging.raiseExceptions, False
    before = set(psutil.Process().children())
    with prefect_api(tmp_path_factory.mktemp("prefect") / "server.log"):
        new = set(psutil.Process().children()) - before
        (started,) = [process for process in new if "pipeline.sampling.watchdog" in process.cmdline()]
        yield started
    logging.raiseExceptions = quiet


@pytest.fixture
def client(server: psutil.Process) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


def last_of(root: Path) -> str:
    return str(json.loads((root / FLOW_RUN_FILE).read_text())["flow_run"])


def history(client: SyncPrefectClient, flow_run: str) -> list[str]:
    return [state.name or "" for state in client.read_flow_run_states(flow_run)]  # type: ignore[arg-type]


def test_a_flow_run_that_is_cancelled_ends_at_once_and_is_marked_so(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_states, "POLL_SECONDS", 0.1)
    child = subprocess.Popen(["sleep", "100"])

    def cancel() -> None:
        client.set_flow_run_state(last_of(tmp_path), Cancelling())  # type: ignore[arg-type]

    def work() -> None:
        try:
            threading.Thread(target=contextvars.copy_context().run, args=(cancel,)).start()
            child.wait()
        finally:
            child.kill()

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Abort, match="cancelled in Prefect"):
        rounds(tmp_path, work)
    assert child.wait() == -signal.SIGKILL
    assert history(client, last_of(tmp_path)) == ["Pending", "Running", "Cancelling", "Cancelled"]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_interrupt_that_is_no_cancellation_stays_one(client: SyncPrefectClient, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        rounds(tmp_path, lambda: signal.raise_signal(signal.SIGUSR1))
    assert history(client, last_of(tmp_path))[-1] == "Crashed"


@pytest.mark.parametrize(("state", "end"), [(Running, "Crashed"), (Cancelling, "Cancelled")])
def test_what_was_killed_is_marked_when_the_run_goes_on(
    client: SyncPrefectClient, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: Callable[[], object], end: str
) -> None:
    zombie = client.create_flow_run(rounds, parameters={}, state=state())  # type: ignore[arg-type]
    assert rounds(tmp_path, lambda: None) == "report"
    last = json.loads((tmp_path / FLOW_RUN_FILE).read_text())
    (tmp_path / FLOW_RUN_FILE).write_text(
        json.dumps({**last, "flow_run": str(zombie.id), "host": "node7", "pid": 4711})
    )
    assert rounds(tmp_path, lambda: None) == "report"
    marked = client.read_flow_run(zombie.id).state
    assert marked is not None and marked.name == end
    assert "process 4711 on node7 is gone" in str(marked.message) and last_of(tmp_path) in str(marked.message)
    assert f"is marked {end.lower()}" in capsys.readouterr().err
    completed = last_of(tmp_path)
    assert rounds(tmp_path, lambda: None) == "report"
    assert history(client, completed) == ["Pending", "Running", "Completed"]


@pytest.mark.parametrize(
    ("left", "told"), [({}, 1), ({"left": True}, 0), ({"ended": True}, 0)], ids=["killed", "paused", "ended"]
)
def test_a_flow_run_that_starts_again_tells_of_its_process_only_if_that_was_killed(
    client: SyncPrefectClient, tmp_path: Path, left: dict[str, bool], told: int
) -> None:
    @flow(name="again", retries=0, persist_result=False)
    def again() -> None:
        with pytest.raises(RunError), true_states(tmp_path):
            raise RunError("its gate pauses it")
        last = json.loads((tmp_path / FLOW_RUN_FILE).read_text())
        assert last.pop("left") is True
        (tmp_path / FLOW_RUN_FILE).write_text(json.dumps({**last, "pid": 4711, **left}))
        with true_states(tmp_path):
            pass

    again()
    resource = {"id": [run_resource(tmp_path)["prefect.resource.id"]]}
    asked = {"filter": {"resource": resource}, "limit": 50}
    deadline = time.monotonic() + (60 if told else 3)
    found: list[dict[str, Any]] = []
    while len(found) < max(told, 1) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = client.request("POST", "/events/filter", json=asked).json()["events"]
    assert [(event["event"], event["payload"]["pid"]) for event in found] == [("prefloop.worker.stale", 4711)] * told


@pytest.mark.parametrize(
    "text", ["", "{}", '{"flow_run": "x"}', json.dumps({"flow_run": "0" * 32, "host": "", "pid": 1})]
)
def test_a_flow_run_that_this_server_does_not_know_is_let_be(server: psutil.Process, tmp_path: Path, text: str) -> None:
    (tmp_path / FLOW_RUN_FILE).write_text(text)
    assert rounds(tmp_path, lambda: None) == "report"


@pytest.mark.whole
def test_a_run_goes_on_without_the_server_and_tells_the_next_one(
    server: psutil.Process, client: SyncPrefectClient, tmp_path: Path
) -> None:
    family = [server, *server.children(recursive=True)]

    def work() -> None:
        for process in family:
            process.kill()

    # Two minutes of asking again: by then the next server is there on a slow machine too.
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 6}):
        assert rounds(tmp_path, work) == "report"
    assert history(client, last_of(tmp_path)) == ["Pending", "Running", "Completed"]
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_server_of_one_s_own_that_is_out_of_reach(server: psutil.Process, tmp_path: Path, when: str) -> None:
    url = "http://127.0.0.1:9/api" if when == "before" else PREFECT_API_URL.value()
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(RunError, match=rf"{url} is out of reach \(.*refused\).*the same command goes on"),
        prefect_api(tmp_path / "server.log"),
    ):
        assert when == "meanwhile"
        httpx.get("http://127.0.0.1:9/api/flow_runs")
