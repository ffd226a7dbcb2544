"""Correct states in Prefect: cancelled runs end, and killed runs do not stay marked as running.

``flow_run.json`` in the run folder names the flow run and process that wrote there last.
"""

import contextvars
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.prefect_api.events import WorkerStale, related_resources, send_event
from flows.run_folder.lease import ENDED_WELL, FLOW_RUN_FILE
from pipeline.storage.atomic import write_json

POLL_SECONDS = 2.0
_REQUEST_SECONDS = 10.0
ENDED = {StateType.CANCELLING, StateType.CANCELLED}
_UNDER_WAY = {StateType.PENDING, StateType.RUNNING, StateType.CANCELLING}
# Set for runs started by Prefect's own process, which also ends them when they are cancelled.
MANAGED = "PREFECT__FLOW_RUN_ID"
# A process that was not killed writes this when its work ends before it is done.
_LEFT = "left"


@contextmanager
def true_states(root: Path) -> Iterator[None]:
    """End the block if its flow run is cancelled in Prefect; the process must hold the run ``root``.

    First marks the flow run before as crashed, if Prefect still shows it as running. If the process before was killed,
    an event tells of it.

    Raises:
        Abort: the flow run was cancelled; everything that the block started has ended, and Prefect knows.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    own = context.flow_run.id
    _end_last(root, own)
    started = psutil.Process().create_time()
    here: dict[str, Any] = {"flow_run": str(own), "host": socket.gethostname(), "pid": os.getpid(), "started": started}
    write_json(root / FLOW_RUN_FILE, here)
    try:
        with _cancellable(own):
            yield
    except BaseException:
        _leave(root, here)
        raise
    write_json(root / FLOW_RUN_FILE, {**here, ENDED_WELL: True})


def _leave(root: Path, here: dict[str, Any]) -> None:
    """Note that this process was not killed, unless another one writes in the run folder by now."""
    file = root / FLOW_RUN_FILE
    with suppress(OSError, ValueError):
        if json.loads(file.read_text(encoding="utf-8")) == here:
            write_json(file, {**here, _LEFT: True})


@contextmanager
def _cancellable(own: UUID) -> Iterator[None]:
    if MANAGED in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    cancelled = threading.Event()
    try:
        with _interrupted_when_cancelled(own, cancelled):
            yield
    except KeyboardInterrupt:
        if not cancelled.is_set():
            raise
        with _client() as client:
            _set(client, own, Cancelled(message="cancelled; the same command goes on from the last complete shard"))
        raise Abort("the flow run was cancelled in Prefect") from None


@contextmanager
def _interrupted_when_cancelled(flow_run: UUID, cancelled: threading.Event) -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in the main thread, and set ``cancelled``, if Prefect cancels the flow run."""
    over, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        with _client() as client:
            while not over.wait(POLL_SECONDS):
                state = _state(client, flow_run)
                if state is not None and state.type in ENDED:
                    with lock:
                        if not over.is_set():
                            cancelled.set()
                            # Signal the thread itself, to interrupt what it waits for.
                            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                    return

    # SIGUSR1, since a shell may have set this process to ignore SIGINT.
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    # The context holds the server's address.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="cancellation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with lock:
            over.set()
        signal.signal(signal.SIGUSR1, before)


def _end_last(root: Path, own: UUID) -> None:
    """Mark the flow run that last wrote to ``root`` as crashed, unless Prefect knows its end.

    This process holds the run folder, so no other process writes there.
    """
    try:
        last: dict[str, Any] = json.loads((root / FLOW_RUN_FILE).read_text(encoding="utf-8"))
        flow_run, who = UUID(last["flow_run"]), f"process {last['pid']} on {last['host']}"
        stale = WorkerStale(str(last["host"]), int(last["pid"]), str(flow_run))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if flow_run == own:
        # Started again, by an automation or a person; Prefect shows it as running, and rightly.
        if not (last.get(_LEFT) or last.get(ENDED_WELL)):
            with _client() as client:
                _tell(client, stale, root)
        return
    with _client() as client:
        state = _state(client, flow_run)
        if state is None or state.type not in _UNDER_WAY:
            return
        message = f"{who} is gone; the run went on as flow run {own}"
        cancelled = state.type == StateType.CANCELLING
        _set(client, flow_run, Cancelled(message=message) if cancelled else Crashed(message=message))
        _tell(client, stale, root)
    print(
        f"Prefect's flow run {flow_run}, of {who}, is marked {'cancelled' if cancelled else 'crashed'}", file=sys.stderr
    )


def _tell(client: SyncPrefectClient, stale: WorkerStale, root: Path) -> None:
    with suppress(httpx.HTTPError):
        send_event(client, stale, root, related_resources())


def _client() -> SyncPrefectClient:
    # Settings that differ from the flow's give a separate client: the flow uses its own in another thread.
    return get_client(httpx_settings={"timeout": _REQUEST_SECONDS}, sync_client=True)


def _state(client: SyncPrefectClient, flow_run: UUID) -> State[Any] | None:
    """Return the flow run's state; None if the server does not know it or does not answer."""
    with suppress(ObjectNotFound, httpx.HTTPError):
        return client.read_flow_run(flow_run).state
    return None


def _set(client: SyncPrefectClient, flow_run: UUID, state: State[Any]) -> None:
    """Set ``state`` on a flow run and on its unfinished tasks."""
    only = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    with suppress(httpx.HTTPError):
        for task in client.read_task_runs(flow_run_filter=only):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        client.set_flow_run_state(flow_run, state, force=True)
