"""A Prefect API: the user's own if configured, that of ``prefloop up`` if it runs, else a private one for this command.

The private server writes to the same Prefect home as ``prefloop up`` and listens on 127.0.0.1. Unlike Prefect's own
temporary server, it ends with this process, even if that is killed with -9.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_HOME, temporary_settings

from flows.prefect_api.kept_alive import kept_alive
from pipeline.errors import RunError, UserError
from pipeline.sampling.ports import free_port, is_free
from pipeline.storage.atomic import write_text

START_SECONDS = 120.0
_STOP_SECONDS = 5.0
DRAIN_SECONDS = 10.0
REACH_SECONDS = 10.0
# With 2, 4, 8, ... seconds in between, this takes a minute or two.
RETRIES = 5
# With Prefect's 15, all connections may wait for the one that writes to SQLite, which itself waits for another.
CONNECTIONS = {
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "50",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "50",
}


class ServerLostError(RunError):
    """A server that outlives this command has stopped answering."""


@contextmanager
def prefect_api(log: Path) -> Iterator[None]:
    """Provide a server for flows within the block; a private one is restarted at the same address if it dies.

    Raises:
        RunError: the private server does not start, a server fails (its disk may be full), or a lasting one is out of
            reach when a flow needs it.
    """
    url = lasting_api()
    if url is not None:
        with _within_reach(url), _at_work(), _sent_to(url), _said_plainly():
            yield
        return
    port = free_port()

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return _start(port, output.fileno())

    process = start()
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait(url, process, log)
    except BaseException:
        stop_watched(process)
        raise
    # Enough retries for a slow machine to restart the server.
    patience = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: max(RETRIES, PREFECT_CLIENT_MAX_RETRIES.value())})
    with _at_work(log), kept_alive(process, start, stop_watched), _sent_to(url), patience, _said_plainly():
        yield


def lasting_api() -> str | None:
    """Return the URL of a server that outlives this command, or None.

    It is ``PREFECT_API_URL``, or the URL that ``prefloop up`` or ``ui`` wrote to the same Prefect home.
    """
    configured: str | None = PREFECT_API_URL.value()
    if configured:
        return configured
    with suppress(OSError):
        noted = _note().read_text(encoding="utf-8").strip()
        return noted if _is_healthy(noted) else None
    return None


@contextmanager
def lasting_server(port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run Prefect's server with its UI on 127.0.0.1 for the block; other commands can find it.

    Raises:
        UserError: the port is taken, or a server of this Prefect home is already running.
        RunError: the server does not start.
    """
    url = f"http://127.0.0.1:{port}/api"
    running = lasting_api()
    if running is not None and (running != url or _is_healthy(url)):
        raise UserError(f"Prefect's server is already {running}; end it, or unset PREFECT_API_URL if that names it")
    if not is_free(port):
        raise UserError(f"--port: {port} is taken on 127.0.0.1; choose another from 1 to 65535")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Without PREFECT_SERVER_UI_API_URL the page uses the default port, whatever port serves it.
    log = _home() / "prefloop-server.log"
    with log.open("ab") as output:
        process = start_watched(command, {"PREFECT_SERVER_UI_API_URL": url, **CONNECTIONS}, output.fileno())
    try:
        _wait(url, process, log)
        write_text(_note(), url + "\n")
        yield process
    finally:
        with suppress(FileNotFoundError):
            _note().unlink()
        stop_watched(process)


@contextmanager
def _within_reach(url: str) -> Iterator[None]:
    """Raise ``RunError`` if the server at ``url`` does not answer, ``ServerLostError`` if it did at first."""
    kind: type[RunError] = RunError
    try:
        httpx.get(f"{url}/health", timeout=REACH_SECONDS)
        kind = ServerLostError
        yield
    except httpx.TransportError as error:
        raise kind(
            f"Prefect's server at {url} is out of reach ({error}); what is complete is kept, and the same command goes "
            "on when the server is back, or with one of its own when PREFECT_API_URL is not set"
        ) from error


@contextmanager
def _at_work(log: Path | None = None) -> Iterator[None]:
    """Raise ``RunError`` if the server reports a failure or if a private server, which has the ``log``, dies."""
    failures = (httpx.HTTPStatusError,) if log is None else (httpx.HTTPStatusError, httpx.TransportError)
    try:
        yield
    except failures as error:
        said = str(error).splitlines()[0]
        if isinstance(error, httpx.HTTPStatusError):
            if not error.response.is_server_error:
                raise
            said = f"{error.response.status_code} {error.response.reason_phrase}"
        raise RunError(
            f"Prefect's server failed ({said}); {_database(log)}. What is complete is kept; the same command goes on"
        ) from error


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Raise the network error that Prefect's version check, its first request to a server, hides in another error."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, httpx.TransportError) and "reach API" in str(error):
            raise error.__cause__ from None
        raise


def _database(log: Path | None) -> str:
    if log is None:
        return "see its own log"
    free = shutil.disk_usage(_home()).free
    return f"its database is in {_home()}, where {free:,} bytes are free; see {log}"


@contextmanager
def _sent_to(url: str) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            # Task states and log lines are sent in the background; anything unsent after this is lost.
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)
            APILogWorker.drain_all(timeout=DRAIN_SECONDS)


def go_on_without(error: ServerLostError) -> NoReturn:
    """Replace this process with the same command and a private server; complete stages are not repeated.

    A new process, since Prefect would wait for minutes at the end of this one to send what it could not.
    """
    print(f"prefloop: Prefect's server is lost ({error.__cause__}); going on with a private one", file=sys.stderr)
    sys.stdout.flush()
    os.environ["PREFECT_API_URL"] = ""
    os.execv(sys.executable, [sys.executable, *going_on(sys.orig_argv[1:])])  # noqa: S606 - this very command


def going_on(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` without --from, to go on where the command ended: its stages are already set aside."""
    taken = (at for at, one in enumerate(arguments) if one == "--from")
    left_out = {place for at in taken for place in (at, at + 1)}
    return [one for at, one in enumerate(arguments) if at not in left_out and not one.startswith("--from=")]


def start_watched(command: list[str], settings: dict[str, str], output: int | None) -> "subprocess.Popen[bytes]":
    """Start a server that ends with this process; ``output`` is a file descriptor, or None to share this one's."""
    watched = [sys.executable, "-m", "pipeline.sampling.watchdog", str(os.getpid()), *command]
    return subprocess.Popen(
        watched,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )


def stop_watched(process: "subprocess.Popen[bytes]", seconds: float = _STOP_SECONDS) -> None:
    """End what ``start_watched`` started: terminate it, and kill it after ``seconds``."""
    # Signal only the watchdog, which passes it on: a worker signalled twice does not wait for its runs.
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(port: int, output: int) -> "subprocess.Popen[bytes]":
    serve = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    serve += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    # Prefect starts its own temporary server with these two private settings.
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return start_watched(serve, settings, output)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _is_healthy(url):
            return
        time.sleep(0.1)
    raise RunError(f"Prefect's server did not start on {url}; {_database(log)}")


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=30).status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _home() -> Path:
    home: Path = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    return home


def _note() -> Path:
    return _home() / "prefloop.url"
