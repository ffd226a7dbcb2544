"""A Prefect API for the time of one command: the user's own if one is configured, else a private one.

The private one writes to the same Prefect home as ``prefloop ui``, listens on 127.0.0.1 and, unlike
Prefect's own temporary server, is gone as soon as this process is, also when that is killed with -9.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.types import RunError

START_SECONDS = 120.0
STOP_SECONDS = 5.0
DRAIN_SECONDS = 10.0


@contextmanager
def prefect_api(log: Path) -> Iterator[None]:
    """Within the block flows find a server. Raises ``RunError`` if the private one does not start."""
    if PREFECT_API_URL.value():
        yield
        return
    port = _free_port()
    with log.open("ab") as output:
        process = _start(port, output.fileno())
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait(url, process, log)
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield
            finally:
                # States of tasks and log lines travel in the background; what is not sent by now is never seen.
                EventsWorker.drain_all(timeout=DRAIN_SECONDS)
                APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    finally:
        stop_watched(process)


def start_watched(command: list[str], settings: dict[str, str], output: int | None) -> "subprocess.Popen[bytes]":
    """Start a server that ends when this process does; ``output`` is a file descriptor, or None for this one's own."""
    watched = [sys.executable, "-m", "pipeline.watchdog", str(os.getpid()), *command]
    return subprocess.Popen(
        watched,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )


def stop_watched(process: "subprocess.Popen[bytes]") -> None:
    """End what ``start_watched`` started: politely, then at once."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_SECONDS)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        pass
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(port: int, output: int) -> "subprocess.Popen[bytes]":
    serve = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    serve += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    # The two private settings are those with which Prefect starts its own temporary server.
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return start_watched(serve, settings, output)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RunError(f"Prefect's server did not start on {url}; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
