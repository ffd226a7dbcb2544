"""The peak is that of what runs while it is measured, children included."""

import os
import subprocess
import sys

from flows.workers.peak_memory import PeakMemory

MIB = 1 << 20


def own() -> list[int]:
    return [os.getpid()]


def test_what_was_held_and_given_back_counts_and_what_was_before_does_not() -> None:
    before = bytearray(b"x") * (300 * MIB)
    before.clear()
    memory = PeakMemory(own)
    start = memory.bytes()["process"]
    held = bytearray(b"x") * (200 * MIB)
    held.clear()
    assert 190 * MIB < memory.bytes()["process"] - start < 290 * MIB
    assert "device" not in memory.bytes()


def test_children_count_and_processes_that_are_gone_do_not() -> None:
    memory = PeakMemory(lambda: [*own(), 2**22 + 7])
    alone = memory.bytes()["process"]
    code = "import sys; held = bytearray(b'x' * (100 << 20)); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None and child.stdout.readline() == b"ready\n"
        assert memory.bytes()["process"] > alone + 100 * MIB
        child.stdin.close()
