"""``prefloop serve``: a worker that runs deployments. ``prefloop up``: server, UI and worker together."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING
from prefect.states import Crashed

from flows.commands.deployments.arrivals import data_watched
from flows.commands.deployments.deploy import ensure_pool, require_lasting_api
from flows.prefect_api.access import Api, connected, secret_file
from flows.prefect_api.server import lasting_server
from flows.prefect_api.starting import end_group, start_watched
from pipeline.errors import RunError

# Time for a run to end its children and report its end; one that is killed then goes on from the same files.
_STOP_SECONDS = 15.0
# Time of a worker without runs to say that it goes: Prefect's own may wait on for good.
_IDLE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_WATCH_SECONDS = 0.5
# A worker that lives shorter than this is not started again.
_LEAST_SECONDS = 20.0
# Prefect's label of a flow run.
_TAKEN_BY = "prefect.worker.name"


def run_worker(pool: str, limit: int | None) -> int:
    """Run deployments of ``pool``, at most ``limit`` at a time, until stopped; return the worker's exit code.

    Raises ``UserError`` if there is no lasting server.
    """
    api = require_lasting_api()
    try:
        with data_watched(api):
            print(
                f"worker of the pool {pool} at {api.url}  (Ctrl-C ends it and the runs that it started)",
                file=sys.stderr,
            )
            return _keep_worker(api, pool, limit, lambda: None)
    except KeyboardInterrupt:
        return 0


def run_server_and_worker(port: int, pool: str, limit: int | None) -> int:
    """Run Prefect's server and UI on 127.0.0.1, and a worker, until stopped or the server ends; return an exit code.

    A worker that dies is replaced; the runs that it started end with it.

    Raises ``UserError`` if the port is taken or a server is already running.
    """
    try:
        with lasting_server(port) as (api, server), data_watched(api):
            _announce_ui(port, f", with a worker of the pool {pool}  (Ctrl-C ends all)")
            return _keep_worker(api, pool, limit, server.poll)
    except KeyboardInterrupt:
        return 0


def _keep_worker(api: Api, pool: str, limit: int | None, ended: Callable[[], int | None]) -> int:
    """Keep a worker running until ``ended`` gives an exit code, and return that.

    A worker that dies is replaced; one that dies soon after its start would do so again, and its exit code is returned.
    """
    while True:
        # Prefect notes on a run which worker took it.
        started, name = time.monotonic(), f"{socket.gethostname()}-{uuid4().hex[:8]}"
        with _worker(api, pool, limit, name) as worker:
            while (code := ended()) is None and worker.poll() is None:
                time.sleep(_WATCH_SECONDS)
        if code is not None:
            return code
        _mark_what_it_took(api, name)
        if time.monotonic() - started < _LEAST_SECONDS:
            return worker.returncode
        print(f"the worker ended with exit code {worker.returncode}; another one starts", file=sys.stderr)


def _mark_what_it_took(api: Api, name: str) -> None:
    """Mark as crashed the runs that the worker ``name``, which died, had taken and not begun.

    Those that had begun are missed by their heartbeats.
    """
    pending = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])))
    try:
        with connected(api), get_client(sync_client=True) as client:
            for flow_run in client.read_flow_runs(flow_run_filter=pending):
                if flow_run.labels.get(_TAKEN_BY) == name:
                    client.set_flow_run_state(flow_run.id, Crashed(message="its worker died before it began"))
                    print(f"{flow_run.name} is marked as crashed: its worker died before it began", file=sys.stderr)
    except (RunError, httpx.HTTPError) as error:
        print(f"runs of the worker that ended cannot be marked: {str(error).splitlines()[0]}", file=sys.stderr)


@contextmanager
def _worker(api: Api, pool: str, limit: int | None, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    with connected(api), get_client(sync_client=True) as client:
        ensure_pool(client, pool)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    command += ["--name", name]
    command += [] if limit is None else ["--limit", str(limit)]
    # No prefetch: a run taken early would collide with one that is about to end.
    worker = start_watched(command, {**api.environment(), "PREFECT_WORKER_PREFETCH_SECONDS": "0"}, None)
    try:
        yield worker
    finally:
        _stop_worker(worker)


def _stop_worker(worker: "subprocess.Popen[bytes]") -> None:
    """End a worker, which is given time only for the runs that it has."""
    worker.terminate()
    asked = with_runs = time.monotonic()
    while worker.poll() is None and (now := time.monotonic()) - asked < _STOP_SECONDS:
        with_runs = now if _has_runs(worker.pid) else with_runs
        if now - with_runs > _IDLE_SECONDS:
            break
        time.sleep(_LOOK_SECONDS)
    end_group(worker)


def _has_runs(watchdog: int) -> bool:
    """Whether the worker that ``watchdog`` looks after has processes of its own that still run."""
    try:
        below = psutil.Process(watchdog).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    return sum(map(_runs, below)) > 1


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serve_ui(port: int) -> int:
    """Run the server until it is stopped; return its exit code. Raises ``UserError`` if the port is taken."""
    try:
        with lasting_server(port) as (_, server):
            _announce_ui(port, "  (Ctrl-C ends it)")
            return server.wait()
    except KeyboardInterrupt:
        return 0


def _announce_ui(port: int, more: str) -> None:
    print(f"Prefect UI: http://127.0.0.1:{port}{more}", file=sys.stderr)
    configured = PREFECT_SERVER_API_AUTH_STRING.value() is not None
    place = "in PREFECT_SERVER_API_AUTH_STRING" if configured else f"the line in {secret_file()}"
    print(f"  it asks for a password once: {place}", file=sys.stderr)
