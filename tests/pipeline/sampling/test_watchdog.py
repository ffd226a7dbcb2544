"""A command under the watchdog ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import os, subprocess, sys, time
command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
subprocess.Popen([sys.executable, "-m", "pipeline.sampling.watchdog", str(os.getpid()), *command], process_group=0)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_command_ends_after_its_parent_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        command = int(parent.stdout.readline())
        assert not gone(command)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not gone(command):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_exit_code_of_the_command_is_passed_on() -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.call([sys.executable, "-m", "pipeline.sampling.watchdog", str(os.getpid()), *command]) == 3


def test_a_command_that_is_told_to_end_ends_in_its_own_way() -> None:
    own = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True); "
    command = [sys.executable, "-c", own + "signal.pause()"]
    watched = [sys.executable, "-m", "pipeline.sampling.watchdog", str(os.getpid()), *command]
    with subprocess.Popen(watched, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(20) == 7
