"""How much memory a piece of work took at its peak, over what the process held before it."""

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
MIB = 1024.0


class PeakMemory:
    """Peak over the memory at the moment it is made, in MiB: resident memory, or on CUDA what tensors take there.

    Attributes:
        source: where the numbers come from. ``ru_maxrss`` cannot be reset, so there the peak is at least that of all
            that the process did before.
    """

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self.source = "cuda"
        if cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / MIB**2
            return
        self.source = "VmHWM" if _reset_peak() else "ru_maxrss"
        self._before = _status("VmRSS") if self.source == "VmHWM" else _largest()

    def above(self) -> float:
        """MiB at the peak so far, above the start."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / MIB**2 - self._before
        return (_status("VmHWM") if self.source == "VmHWM" else _largest()) - self._before


def _reset_peak() -> bool:
    try:
        # 5: "reset the peak resident set size" (proc_pid_clear_refs(5)).
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return STATUS.exists()


def _status(name: str) -> float:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) / MIB
    raise OSError(f"{STATUS} has no {name}")


def _largest() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
