"""A child that moves bytes is waited for beyond its limit; one that does nothing, or only computes, is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.workers.child import Child
from flows.workers.messages import Done
from flows.workers.silence import Counted, Silence, count_processes, work_between
from pipeline.errors import RunError
from tests.support.obedient_child import SERVICE, Hang, Init, Read
from tests.support.places import ROOT

ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.mark.parametrize("in_child", [False, True])
def test_a_child_that_reads_slowly_for_longer_than_its_limit_is_waited_for(tmp_path: Path, in_child: bool) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4_000_000))
    with Child(SERVICE, Init(), tmp_path / "log", 60, ENV) as child:
        assert child.call(Read(str(file), 10.0, in_child), Done, 4.0) == Done()
        with pytest.raises(RunError, match="hang was silent for 1 second and was ended"):
            child.call(Hang(busy=False), Done, 1.0)


def test_a_machine_that_stands_still_does_not_end_a_child_that_computes() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        silence, began, looks = Silence(child.pid, 1.5), time.monotonic(), 0
        # Longer than the limit before the first look.
        time.sleep(2.0)
        try:
            with pytest.raises(TimeoutError, match="computed for 3 seconds without a report, a read or a write"):
                while True:
                    silence.look()
                    looks += 1
                    time.sleep(silence.until_look() or 0)
        finally:
            child.kill()
    assert time.monotonic() - began > 2.0 + 3.0 - 0.2
    assert looks > 5


def test_small_reads_are_no_work(tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("word")
    with Child(SERVICE, Init(), tmp_path / "log", 60, ENV) as child:
        with pytest.raises(RunError, match="read was silent for 2 seconds and was ended"):
            child.call(Read(str(file), 60.0), Done, 2.0)
        assert not child.alive


HOLD = """
import sys, time
kept = bytearray(b"x") * int(sys.argv[1])
data = open(sys.argv[2], "rb").read()
print(len(kept), flush=True)
time.sleep(60)
"""


def test_bytes_of_reading_and_of_memory_are_counted_of_children_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(20_000_000))
    before = count_processes(os.getpid())
    command = [sys.executable, "-c", HOLD, "50000000", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"50000000\n"
        after = count_processes(os.getpid())
        child.kill()
    ours = {name: counted for name, counted in after.items() if name[0] == child.pid}
    moved, seconds = work_between(before, ours)
    # What it read is in its memory as well; an interpreter comes on top.
    assert 90_000_000 < moved < 150_000_000
    assert 0 < seconds < 10


def test_work_is_what_each_process_did_since_and_a_new_one_with_an_old_id_is_new() -> None:
    before = {(1, 10.0): Counted(100, 1.0), (2, 20.0): Counted(500, 2.0), (3, 30.0): Counted(900, 9.0)}
    after = {(1, 10.0): Counted(160, 1.5), (2, 99.0): Counted(7, 0.25), (3, 30.0): Counted(400, 9.0)}
    assert work_between(before, after) == (67, 0.75)
