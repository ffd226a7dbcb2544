"""A run folder that two machines reach by mounts of their own: one writes, and the other takes over when it is gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.run_folder.lease import LEASE_FILE, hold, read_holder
from pipeline.errors import RunError, RunLockedError
from pipeline.storage import holder
from tests.support.places import ROOT

# Another machine: its name and boot differ, and its locks are not seen here, as with NFS without a lock daemon.
_OTHER = """
import errno, fcntl, sys
from pathlib import Path
from flows.run_folder.lease import hold
from pipeline.errors import RunError
from pipeline.storage import holder

def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = flock
holder.socket.gethostname = lambda: "other"
holder._machine = lambda: "other boot"
with hold(Path(sys.argv[1]), 0.1, 1.0) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still held", flush=True)
    except RunError as error:
        print(error, flush=True)
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two paths of one folder: bind mounts where this user may make them, else a link."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    mounted = subprocess.run(["mount", "--bind", str(one), str(two)], capture_output=True, check=False).returncode == 0
    if not mounted:
        two.rmdir()
        two.symlink_to(one)
    yield one, two
    if mounted:
        subprocess.run(["umount", str(two)], check=True)


@pytest.fixture
def other(mounts: tuple[Path, Path]) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", _OTHER, str(mounts[1])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_other_machine_s_run_is_refused_while_it_lives(
    mounts: tuple[Path, Path], other: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(RunLockedError, match=f"process {other.pid} on other"), hold(mounts[0]):
        pass


def test_a_killed_one_is_taken_over_after_its_time(
    mounts: tuple[Path, Path], other: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    other.kill()
    other.wait()
    with hold(mounts[0]) as lease:
        lease.check()
        found = read_holder(mounts[1] / LEASE_FILE)
        assert found is not None and found.pid == os.getpid() and found.host == holder.socket.gethostname()
    assert "waiting 1 s for a sign of life from process" in capsys.readouterr().err


def test_one_that_was_only_asleep_finds_its_run_taken(
    mounts: tuple[Path, Path], other: "subprocess.Popen[str]"
) -> None:
    other.send_signal(signal.SIGSTOP)
    with hold(mounts[0], 0.1) as lease:
        other.send_signal(signal.SIGCONT)
        said, _ = other.communicate("look\n", timeout=30)
        assert "the run was taken over by process" in said
        lease.check()
    with pytest.raises(RunError, match="is gone"):
        lease.check()
