"""Waiting for a server as long as it gets on, however slow the machine is."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

from flows.prefect_api.starting import Stall, Work, start_watched, stop_watched, wait_for_server, work_of
from pipeline.errors import RunError

NOWHERE = "http://127.0.0.1:9/api"


def test_a_process_that_gets_on_slowly_does_not_stall() -> None:
    """With a hundredth of a core it takes hours; what counts is when it last got on."""
    stall, work = Stall(0.0, Work(0.0, 0, 0)), Work(0.0, 0, 0)
    for minute in range(1, 200):
        work = Work(work.cpu + 0.6, work.moved, work.logged)
        assert stall.seconds(60.0 * minute, work) in (0.0, 60.0)
    # An idle server's timers: some milliseconds a minute.
    idle = Work(work.cpu + 0.3, work.moved + 5000, work.logged)
    assert stall.seconds(60.0 * 300, idle) == 60.0 * 102


@pytest.mark.parametrize(
    ("work", "stalled"),
    [
        (Work(5.0, 100, 10), 50.0),
        (Work(5.9, 1 << 20, 10), 50.0),
        (Work(6.0, 100, 10), 0.0),
        (Work(5.0, (1 << 20) + 100, 10), 0.0),
        (Work(5.0, 100, 11), 0.0),
        # A child that has ended takes its counts along.
        (Work(1.0, 0, 10), 0.0),
    ],
)
def test_it_gets_on_while_it_computes_reads_or_writes(work: Work, stalled: float) -> None:
    assert Stall(10.0, Work(5.0, 100, 10)).seconds(60.0, work) == stalled


def test_the_work_of_a_process_and_its_children_is_counted(tmp_path: Path) -> None:
    script = "import os, time\nopen('big', 'wb').write(b'x' * (3 << 20))\nwhile time.process_time() < 1.5: pass\n"
    (tmp_path / "log").write_text("12345")
    idle = work_of(psutil.Process().pid, tmp_path / "log")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", child, script + "print('there', flush=True)\ninput()"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        work = work_of(process.pid, tmp_path / "log")
        process.kill()
    assert work.cpu >= 1.5 and work.moved >= 3 << 20 and work.logged == idle.logged == 5


def test_a_server_that_does_nothing_is_given_up(tmp_path: Path) -> None:
    process = start_watched([sys.executable, "-c", "import time; time.sleep(1000)"], {}, None)
    try:
        with (
            temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 1}),
            pytest.raises(
                RunError,
                match=r"did not start on http://127.0.0.1:9/api: it has done nothing for 1 second "
                r"\(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS\); see the log",
            ),
        ):
            wait_for_server(NOWHERE, process, tmp_path / "log", "see the log")
    finally:
        stop_watched(process)


def test_a_server_that_ends_is_told_with_its_code(tmp_path: Path) -> None:
    process = start_watched([sys.executable, "-c", "raise SystemExit(7)"], {}, None)
    with pytest.raises(RunError, match=r"did not start on .*: it ended with exit code 7; see the log"):
        wait_for_server(NOWHERE, process, tmp_path / "log", "see the log")
