"""What this machine has to offer: memory, the accelerator's memory, disk."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.planning.machine import free_bytes

# Control groups of version 2: the limit of a container, which the machine's own figures do not show.
GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that are free: of memory, of the accelerator's (None: there is none), of the disk of a run folder."""

    memory: int
    device: int | None
    disk: int


def room(folder: Path) -> Room:
    """What is free here; ``folder`` need not exist yet."""
    import torch

    device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return Room(free_memory(), device, free_bytes(folder))


def free_memory(group: Path = GROUP) -> int:
    """Bytes that processes can take without swapping, within the limit of the control group ``group`` if it has one."""
    free: int = psutil.virtual_memory().available
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))
