"""Peak memory of a stage, for its manifest."""

import gc
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

PROC = Path("/proc")
KIB = 1024


class PeakMemory:
    """Peak, since construction, of resident memory of some processes and their children, and of tensors on a device.

    Pages shared by processes count in each, so the sum is an upper bound.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """``pids``: returns the processes, called at the start and at the end; their children are added."""
        self._pids = pids
        for pid in with_children(pids()):
            _reset(pid)
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()

    def bytes(self) -> dict[str, int]:
        """Return ``process`` and, if this process uses a CUDA device, ``device``; unknown values are left out."""
        peaks = [_peak(pid) for pid in with_children(self._pids())]
        found = {"process": sum(peak for peak in peaks if peak is not None)}
        cuda = _cuda()
        if cuda is not None:
            found["device"] = int(cuda.max_memory_allocated())
        return {place: size for place, size in found.items() if size}


def with_children(pids: Iterable[int]) -> set[int]:
    """Return the running processes among ``pids``, and their descendants."""
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
        # Without a reset, the peak counts from the start of the process.
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
    """Return torch.cuda if this process already uses it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def free_device_memory() -> None:
    """Return memory of models that are gone to the device: torch keeps it for itself, but the sampler is a process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
