"""How long a child may be silent: work that shows from outside extends the limit. Torch-free.

Loading, gathering, saving and hashing a large model report nothing for many minutes. The parent looks at what the
system counts of the child's processes (engine processes and other ranks included), so a child needs no free thread.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.workers.peak_memory import PROC, with_children
from pipeline.types.counts import number_of

# Looks in one limit, and the seconds between two at most.
_LOOKS, _LONGEST_LOOK = 10, 30.0
# What counts as work between two looks: bytes read, written or taken as memory; share of one core's time. A process
# that waits, or writes its log, stays below both.
_MOVED_BYTES, _CORE_SHARE = 1_000_000, 0.1
# An endless loop and a collective operation that waits for a dead process use a core too, so computing alone extends
# the limit once.
_COMPUTING = 2


@dataclass(frozen=True, slots=True)
class Counted:
    """What the system has counted of one process since its start: bytes that it moved, and seconds of a core."""

    moved: int
    seconds: float


class Silence:
    """The time since a child's last message, and its limit.

    Each message starts it anew, and so do bytes that the child's processes read, write or take as memory. Processes
    that only compute have twice the limit. By as much as a look comes late, both become longer.
    """

    def __init__(self, pid: int, limit: float | None) -> None:
        """``limit`` in seconds; None: there is none."""
        self._pid, self._limit = pid, limit
        self._ends = self._last = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin again: the child has sent a message."""
        now = time.monotonic()
        self._before: Mapping[tuple[int, float], Counted] | None = None
        self._looked = now
        self._begin(now)

    def until_look(self) -> float | None:
        """Seconds to wait for a message until the next look; None: for ever."""
        if self._limit is None:
            return None
        return max(self._due(self._limit) - time.monotonic(), 0.001)

    def look(self) -> None:
        """Take account of what the child has done since the last look.

        Raises:
            TimeoutError: the limit is over; the text says what the child did.
        """
        assert self._limit is not None, "without a limit nothing waits for a look"
        # A machine that stood still, or was too busy to look, did not let the child work either.
        late = max(0.0, time.monotonic() - self._due(self._limit))
        self._ends, self._last = self._ends + late, self._last + late
        now, counted = time.monotonic(), count_processes(self._pid)
        if self._before is not None:
            moved, seconds = work_between(self._before, counted)
            if moved >= _MOVED_BYTES:
                self._begin(now)
            elif seconds >= _CORE_SHARE * (now - self._looked):
                self._computed = True
                self._ends = min(now + self._limit, self._last)
        self._before, self._looked = counted, now
        if now >= self._ends:
            raise TimeoutError(self._said())

    def _due(self, limit: float) -> float:
        return min(self._looked + min(limit / _LOOKS, _LONGEST_LOOK), self._ends)

    def _begin(self, now: float) -> None:
        limit = self._limit or 0.0
        self._computed = False
        self._ends, self._last = now + limit, now + _COMPUTING * limit

    def _said(self) -> str:
        assert self._limit is not None
        if self._computed and self._ends == self._last:
            return f"computed for {number_of(_COMPUTING * self._limit, 'second')} without a report, a read or a write"
        return f"was silent for {number_of(self._limit, 'second')}"


def count_processes(pid: int) -> dict[tuple[int, float], Counted]:
    """Return what is counted of process ``pid`` and its descendants, by id and start; those that end are left out."""
    found = {}
    for one in with_children([pid]):
        try:
            process = psutil.Process(one)
            times = process.cpu_times()
            moved = _moved(PROC / str(one) / "io") + process.memory_info().rss
            found[one, process.create_time()] = Counted(moved, times.user + times.system)
        except psutil.Error:
            continue
    return found


def work_between(
    before: Mapping[tuple[int, float], Counted], after: Mapping[tuple[int, float], Counted]
) -> tuple[int, float]:
    """Return (bytes moved, seconds of a core) from one count to a later one; a new process counts from its start."""
    pairs = [(before.get(name, Counted(0, 0.0)), now) for name, now in after.items()]
    # Freed memory takes nothing from what others did.
    moved = sum(max(0, now.moved - then.moved) for then, now in pairs)
    return moved, sum(max(0.0, now.seconds - then.seconds) for then, now in pairs)


def _moved(file: Path) -> int:
    """Bytes in proc_pid_io(5): by calls, pipes and the page cache included, and from storage, which maps of files read.

    0 on systems without it; there the memory that a process takes must do.
    """
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return sum(int(counts.get(name, 0)) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))
