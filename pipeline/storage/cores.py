"""How many cores this process may keep busy: those it is bound to, and no more than its cgroup's quota pays for."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def bound_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process is bound to."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return the number of cores that this process may keep busy, at least 1.

    A container with ``--cpus 2`` on a machine of 64 cores sees all 64; with as many threads it would stand still most
    of the time.
    """
    quota, count = cpu_quota(), len(bound_cores())
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cpu_quota(membership: Path = _MEMBERSHIP, mount: Path = _MOUNT) -> float | None:
    """Return the cores' worth of time that this process's cgroups allow; None: no limit.

    A group's limit holds for all groups in it, so the smallest one counts. Both versions of cgroups are read.

    Args:
        membership: file of lines ``NUMBER:CONTROLLERS:/PATH``.
        mount: folder of the cgroups' file systems.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        limits += _limits(controllers, path, mount)
    return min(limits, default=None)


def _limits(controllers: str, path: str, mount: Path) -> Iterator[float]:
    """Limits of a group and of those around it; in a container, a path of the host is not there, but the root is."""
    first = "cpu" in controllers.split(",")
    if not first and controllers:
        return
    roots = (mount / controllers, mount / "cpu") if first else (mount, mount / "unified")
    root = next((one for one in roots if one.is_dir()), None)
    if root is None:
        return
    parts = [part for part in path.split("/") if part]
    for length in range(len(parts), -1, -1):
        group = root.joinpath(*parts[:length])
        time, period = (
            (_word(group, "cpu.cfs_quota_us", 0), _word(group, "cpu.cfs_period_us", 0))
            if first
            else (_word(group, "cpu.max", 0), _word(group, "cpu.max", 1))
        )
        if time is not None and period:
            yield time / period


def _word(group: Path, name: str, index: int) -> float | None:
    """A positive number of a group's file; None where there is none, as for ``max`` and -1."""
    try:
        words = (group / name).read_text(encoding="utf-8").split()
        number = float(words[index])
    except (OSError, ValueError, IndexError):
        return None
    return number if number > 0 else None
