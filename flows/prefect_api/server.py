"""A Prefect API: the user's own if configured, that of ``prefloop up`` if it runs, else a private one for this command.

The private server writes to the same Prefect home as ``prefloop up`` and listens on 127.0.0.1. Unlike Prefect's own
temporary server, it ends with this process, even if that is killed with -9.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.prefect_api.access import (
    REACH_SECONDS,
    Api,
    is_healthy,
    lasting_api,
    lasting_secret,
    new_secret,
    prefect_home,
    said_plainly,
    secret_refused,
    status_of,
    url_file,
)
from flows.prefect_api.starting import kept_alive, start_server, stop_watched, wait_for_server
from pipeline.errors import RunError, UserError
from pipeline.sampling.ports import free_port, is_free
from pipeline.storage.atomic import write_text

DRAIN_SECONDS = 10.0
# With 2, 4, 8, ... seconds in between, this takes four minutes, or more: on a busy machine a server starts that slowly.
RETRIES = 7
# With Prefect's 15, all connections may wait for the one that writes to SQLite, which itself waits for another.
CONNECTIONS = {
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "50",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "50",
}
# Prefect starts its own temporary server with these two private settings.
PRIVATE = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class ServerLostError(RunError):
    """A server that outlives this command has stopped answering."""


@contextmanager
def prefect_api(log: Path) -> Iterator[None]:
    """Provide a server for flows within the block; a private one is restarted at the same address if it dies.

    Raises:
        UserError: a lasting server refuses the secret, or its file is not this user's alone.
        RunError: the private server does not start, a server fails (its disk may be full), or a lasting one is out of
            reach when a flow needs it.
    """
    api = lasting_api()
    if api is not None:
        with _within_reach(api.url), _at_work(api.url), _sent_to(api), said_plainly():
            yield
        return
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api", new_secret())

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return start_server(port, str(api.secret), PRIVATE, output.fileno())

    process = start()
    try:
        wait_for_server(api.url, process, log, _database(log))
    except BaseException:
        stop_watched(process)
        raise
    # Enough retries for a slow machine to restart the server.
    patience = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: max(RETRIES, PREFECT_CLIENT_MAX_RETRIES.value())})
    with _at_work(api.url, log), kept_alive(process, start, stop_watched), _sent_to(api), patience, said_plainly():
        yield


@contextmanager
def lasting_server(port: int) -> Iterator[tuple[Api, "subprocess.Popen[bytes]"]]:
    """Run Prefect's server with its UI on 127.0.0.1 for the block; other commands can find it.

    Raises:
        UserError: the port is taken, a server of this Prefect home is already running, or the secret's file is not this
            user's alone.
        RunError: the server does not start.
    """
    api = Api(f"http://127.0.0.1:{port}/api", lasting_secret())
    running = lasting_api()
    if running is not None and (running.url != api.url or is_healthy(api.url)):
        raise UserError(f"Prefect's server is already {running.url}; end it, or unset PREFECT_API_URL if that names it")
    if not is_free(port):
        raise UserError(f"--port: {port} is taken on 127.0.0.1; choose another from 1 to 65535")
    # Without PREFECT_SERVER_UI_API_URL the page uses the default port, whatever port serves it.
    page = {
        "PREFECT_SERVER_UI_API_URL": os.environ.get("PREFECT_SERVER_UI_API_URL", api.url),
        "PREFECT__SERVER_FINAL": "1",
    }
    log = prefect_home() / "prefloop-server.log"
    with log.open("ab") as output:
        process = start_server(port, str(api.secret), {**page, **CONNECTIONS}, output.fileno())
    try:
        wait_for_server(api.url, process, log, _database(log))
        write_text(url_file(), api.url + "\n")
        yield api, process
    finally:
        with suppress(FileNotFoundError):
            url_file().unlink()
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
def _at_work(url: str, log: Path | None = None) -> Iterator[None]:
    """Raise ``RunError`` if the server reports a failure or if a private server, which has the ``log``, dies.

    Raises ``UserError`` if it refuses the secret.
    """
    failures = (httpx.HTTPStatusError,) if log is None else (httpx.HTTPStatusError, httpx.TransportError)
    try:
        yield
    except failures as error:
        said = str(error).splitlines()[0]
        if isinstance(error, httpx.HTTPStatusError):
            with secret_refused(url, error):
                said = status_of(error)
            if not error.response.is_server_error:
                raise
        raise RunError(
            f"Prefect's server failed ({said}); {_database(log)}. What is complete is kept; the same command goes on"
        ) from error


def _database(log: Path | None) -> str:
    if log is None:
        return "see its own log"
    free = shutil.disk_usage(prefect_home()).free
    return f"its database is in {prefect_home()}, where {free:,} bytes are free; see {log}"


@contextmanager
def _sent_to(api: Api) -> Iterator[None]:
    with temporary_settings(api.settings()):
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
