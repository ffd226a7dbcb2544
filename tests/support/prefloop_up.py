"""``prefloop up`` in a process of its own, and what the tests ask of its server."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from pipeline.sampling.ports import free_port
from tests.support.places import ROOT

Found = TypeVar("Found")
CHECKOUT = (sys.executable, "-m", "flows")


class Patient(httpx.Client):
    """Asks again while the server's database is locked, as Prefect's own client does."""

    def request(self, *arguments: Any, **named: Any) -> httpx.Response:
        for _ in range(60):
            response = super().request(*arguments, **named)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        return response


def secret_in(home: Path) -> str:
    """The secret of the servers of a Prefect home."""
    return (home / "prefloop.secret").read_text().strip()


def basic(secret: str) -> httpx.BasicAuth:
    user, _, password = secret.partition(":")
    return httpx.BasicAuth(user, password)


@dataclass
class Up:
    """``prefloop up`` in a process of its own, and a folder to run commands in."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    environment: dict[str, str]
    port: int
    log: Path
    api: Patient
    program: tuple[str, ...] = CHECKOUT

    @property
    def secret(self) -> str:
        """What the server asks for."""
        return secret_in(self.folder / "prefect")

    def prefloop(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [*self.program, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/deployments/name/{name}").raise_for_status().json()
        return found

    def firings(self, name: str) -> list[dict[str, Any]]:
        """The deployment's runs in the order in which they are due."""
        asked = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs: list[dict[str, Any]] = self.api.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return runs

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Those that a worker has seen."""
        return [run for run in self.firings(name) if run["state"]["type"] != "SCHEDULED"]

    def start(self, name: str, **parameters: object) -> str:
        """What the UI's Custom run sends."""
        asked = self.api.post(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", json={"parameters": parameters}
        )
        return str(asked.raise_for_status().json()["id"])

    def wait_for(self, flow_run: str, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api.get(f"/flow_runs/{flow_run}").raise_for_status().json()
            return run if run["state"]["type"] in states else None

        return self.until(reached)

    def trainers(self) -> list[int]:
        """Processes that train for a run of this worker."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                if "flows.stages.trainer_service" in process.info["cmdline"] and process.cwd() == str(self.folder):
                    found.append(process.pid)
            except (psutil.Error, TypeError):
                continue
        return found

    def make_late(self, runs: list[dict[str, Any]]) -> None:
        """Let a day go by for scheduled runs, in the server's database: they are due an hour after another."""
        yesterday = datetime.now(UTC) - timedelta(days=1)
        with closing(sqlite3.connect(self.folder / "prefect" / "prefect.db", timeout=60)) as database, database:
            for hour, run in enumerate(runs):
                due = (yesterday + timedelta(hours=hour)).replace(tzinfo=None)
                moved = "UPDATE flow_run SET expected_start_time = ?1, next_scheduled_start_time = ?1 WHERE id = ?2"
                assert database.execute(moved, [f"{due:%Y-%m-%d %H:%M:%S.%f}", run["id"]]).rowcount == 1
                told = "state_details = json_set(state_details, '$.scheduled_time', ?1)"
                database.execute(
                    f"UPDATE flow_run_state SET {told} WHERE flow_run_id = ?2", [f"{due.isoformat()}Z", run["id"]]
                )

    def until(self, ask: Callable[[], Found | None]) -> Found:
        deadline = time.monotonic() + 800
        while time.monotonic() < deadline:
            found = ask()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"not within 800 seconds:\n{self.log.read_text()[-3000:]}")


@contextmanager
def started_up(folder: Path, program: tuple[str, ...] = CHECKOUT) -> Iterator[Up]:
    """Server, UI and worker, which end with the block; the worker's runs find config files in ``folder``.

    A ``program`` other than the checkout's does not see the checkout.
    """
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]) if program == CHECKOUT else "",
        "JUDGE_KEY": "a-key-that-nobody-must-see",
    }
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "up", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    api = Patient(base_url=f"http://127.0.0.1:{port}/api", timeout=200)
    started = Up(process, folder, environment, port, log, api, program)
    try:
        started.until(lambda: "Prefect UI" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        api.auth = basic(started.secret)
        yield started
    finally:
        api.close()
        process.send_signal(signal.SIGTERM)
        process.wait(90)
