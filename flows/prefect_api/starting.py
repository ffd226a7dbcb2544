"""Starting Prefect's server and workers, waiting for a server as long as it gets on, restarts, and ending them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from flows.prefect_api.access import is_healthy, is_own
from flows.prefect_api.guard import guarded_app
from pipeline.errors import RunError, UserError
from pipeline.sampling import watchdog
from pipeline.types.counts import number_of

Program = subprocess.Popen[bytes]
STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.1
# Between two checks, and so between two starts of a process that dies at once.
_RESTART_SECONDS = 1.0
_SAY_EVERY_SECONDS = 30.0
# An idle server uses less than this in a few minutes, one that starts much more, even with a hundredth of a core.
LEAST_CPU_SECONDS = 1.0
LEAST_BYTES = 1 << 20
_UI = "PREFECT_UI_URL"
_LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"


def start_watched(command: list[str], settings: dict[str, str], output: int | None) -> "subprocess.Popen[bytes]":
    """Start a server that ends with this process; ``output`` is a file descriptor, or None to share this one's."""
    watched = [sys.executable, "-m", watchdog.__name__, str(os.getpid()), *command]
    return subprocess.Popen(
        watched,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )


def stop_watched(process: "subprocess.Popen[bytes]", seconds: float = STOP_SECONDS) -> None:
    """End what ``start_watched`` started: terminate it, and kill it after ``seconds``."""
    # Signal only the watchdog, which passes it on: a worker signalled twice does not wait for its runs.
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    end_group(process)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of what ``start_watched`` started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def kept_alive(process: Program, start: Callable[[], Program], stop: Callable[[Program], None]) -> Iterator[None]:
    """Watch ``process`` while the block runs: if it dies, ``start`` makes another; ``stop`` ends the last one.

    ``stop`` also clears away what a process that died leaves behind.
    """
    current, over = [process], threading.Event()

    def look_after() -> None:
        while not over.wait(_RESTART_SECONDS):
            if current[0].poll() is not None:
                stop(current[0])
                current[0] = start()

    thread = threading.Thread(target=look_after, name="kept-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        stop(current[0])


def start_server(port: int, secret: str, settings: dict[str, str], output: int) -> "subprocess.Popen[bytes]":
    """Start Prefect's server, guarded, on ``port`` of 127.0.0.1; ``settings`` are more variables for it.

    Raises ``UserError`` if ``PREFECT_SERVER_CORS_ALLOWED_ORIGINS`` allows every page, or holds no origins.
    """
    serve = [sys.executable, "-m", "uvicorn", "--factory", f"{guarded_app.__module__}:{guarded_app.__name__}"]
    serve += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    serve += ["--lifespan", "on"]
    own = {
        # In memory, which is Prefect's default, a server that restarts forgets who holds slots of concurrency limits.
        _LEASES: os.environ.get(_LEASES, "prefect.server.concurrency.lease_storage.filesystem"),
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join([*own_origins(port), *_further_origins()]),
        # Notifications hold the address of the run's page.
        _UI: os.environ.get(_UI, own_origins(port)[0]),
    }
    return start_watched(serve, {**own, **settings}, output)


def own_origins(port: int) -> list[str]:
    """Return the addresses under which a browser shows the UI at ``port``."""
    return [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]


def wait_for_server(url: str, process: "subprocess.Popen[bytes]", log: Path, place: str) -> None:
    """Return when the server answers at ``url``; wait as long as its process lives and gets on.

    It gets on while it uses the CPU, reads or writes files, or writes to its ``log``. ``place`` ends the message.

    Raises ``RunError`` if the process ends, or does nothing for ``PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS``.
    """
    patience = float(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    started = said = time.monotonic()
    stall = Stall(started, work_of(process.pid, log))
    while process.poll() is None:
        # Another process may have taken the port since it was free.
        if is_healthy(url) and is_own(url):
            return
        now = time.monotonic()
        if stall.seconds(now, work_of(process.pid, log)) > patience:
            raise RunError(
                f"Prefect's server did not start on {url}: it has done nothing for {number_of(patience, 'second')} "
                f"(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS); {place}"
            )
        if now - said > _SAY_EVERY_SECONDS:
            said = now
            print(f"waiting for Prefect's server, which is starting ({now - started:.0f} s)", file=sys.stderr)
        time.sleep(_LOOK_SECONDS)
    raise RunError(f"Prefect's server did not start on {url}: it ended with exit code {process.returncode}; {place}")


@dataclass(frozen=True)
class Work:
    """What a process and its children have done: CPU seconds, bytes read and written, bytes in their log."""

    cpu: float
    moved: int
    logged: int

    def goes_beyond(self, other: "Work") -> bool:
        """Return whether more was done than an idle process does; a child that has ended takes its counts along."""
        far = abs(self.cpu - other.cpu) >= LEAST_CPU_SECONDS or abs(self.moved - other.moved) >= LEAST_BYTES
        return far or self.logged > other.logged


class Stall:
    """How long a process has done nothing."""

    def __init__(self, now: float, work: Work) -> None:
        """``now`` is in seconds, of any clock."""
        self._moved, self._work = now, work

    def seconds(self, now: float, work: Work) -> float:
        """Return the seconds from the last time that it got on to ``now``, when its ``work`` is this."""
        if work.goes_beyond(self._work):
            self._moved, self._work = now, work
        return now - self._moved


def work_of(pid: int, log: Path) -> Work:
    """Return the work of process ``pid`` and of its children that still run."""
    cpu, moved = 0.0, 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.Error):
                times, files = process.cpu_times(), process.io_counters()
                cpu += times.user + times.system
                moved += files.read_chars + files.write_chars
    return Work(cpu, moved, log.stat().st_size if log.exists() else 0)


def _further_origins() -> list[str]:
    """Return the origins that the user has set for a proxy of their own."""
    named = os.environ.get("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "")
    return [_origin(text.strip()) for text in named.split(",") if text.strip()]


def _origin(text: str) -> str:
    """Return an origin without the slash at its end. Raises ``UserError``."""
    setting = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    if text == "*":
        raise UserError(
            f"{setting}: '*' lets every web page send requests to the server; name the origins, such as "
            "https://prefect.example.com, or unset it"
        )
    try:
        parts = urlsplit(text.rstrip("/"))
        port = "" if parts.port is None else f":{parts.port}"
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        origin = f"{parts.scheme}://{host}{port}"
    except ValueError:
        origin = ""
    if origin != text.rstrip("/").lower() or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{setting}: {text!r}: not an origin such as https://prefect.example.com or http://host:8080")
    return origin
