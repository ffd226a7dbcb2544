"""The most memory that a stage held, for its manifest."""

import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

PROC = Path("/proc")
KIB = 1024


class PeakMemory:
    """From when it is made: peak resident memory of some processes and theirs, and of this one's tensors on a device.

    Processes of the same size share pages, which count in each; so the sum is an upper bound.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """``pids``: the processes, asked for at the beginning and at the end; children are added."""
        self._pids = pids
        for pid in _with_children(pids()):
            _reset(pid)
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()

    def bytes(self) -> dict[str, int]:
        """``process`` and, where this one has tensors on a CUDA device, ``device``; what is not known is left out."""
        peaks = [_peak(pid) for pid in _with_children(self._pids())]
        found = {"process": sum(peak for peak in peaks if peak is not None)}
        cuda = _cuda()
        if cuda is not None:
            found["device"] = int(cuda.max_memory_allocated())
        return {place: size for place, size in found.items() if size}


def _with_children(pids: Iterable[int]) -> set[int]:
    found: set[int] = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found |= {pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.Error:
            continue
    return found


def _reset(pid: int) -> None:
    try:
        # 5: "reset the peak resident set size" (proc_pid_clear_refs(5)).
        (PROC / str(pid) / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        # Where that cannot be done, the peak is that of the process so far.
        return


def _peak(pid: int) -> int | None:
    try:
        for line in (PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    except OSError:
        pass
    if pid != psutil.Process().pid:
        return None
    # Bytes on macOS, KiB elsewhere (getrusage(2)).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else KIB)


def _cuda() -> Any | None:
    """torch.cuda, where this process uses it already."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
