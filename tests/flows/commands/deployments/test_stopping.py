"""How a worker ends: its runs are given time, and one that has none is not waited for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.commands.deployments import serve
from flows.prefect_api.starting import Program, end_group, start_watched

# A worker that never ends by itself, as Prefect's own does at times.
DEAF = "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
READY = "pathlib.Path('ready').touch(); time.sleep(10000)"
RUN = "import pathlib, time; time.sleep(3); pathlib.Path('finished').touch()"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Program]]:
    monkeypatch.chdir(tmp_path)
    # The test would stand still, not be slow, if it were waited for.
    monkeypatch.setattr(serve, "_STOP_SECONDS", 10_000.0)
    programs: list[Program] = []
    yield programs
    for program in programs:
        end_group(program)


def _worker(code: str, started: list[Program]) -> Program:
    worker = start_watched([sys.executable, "-c", DEAF + code + READY], {}, None)
    started.append(worker)
    while not Path("ready").exists():
        serve.time.sleep(0.05)
    return worker


def test_a_worker_without_runs_is_not_waited_for(started: list[Program]) -> None:
    worker = _worker("", started)
    serve._stop_worker(worker)
    assert worker.returncode is not None


def test_a_run_is_given_time_to_end(started: list[Program]) -> None:
    worker = _worker(f"run = subprocess.Popen([sys.executable, '-c', {RUN!r}]); ", started)
    serve._stop_worker(worker)
    assert Path("finished").exists() and worker.returncode is not None
