"""How many threads a child computes in, and how they wait for each other: by the cores that are free as it starts.

Long spinning makes many short operations faster, and slows them down as soon as another program wants the same cores:
``tests.benchmarks.waiting`` measures both. Torch-free.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.storage.cores import bound_cores, usable_cores

CPU_BIND, THREADS = "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"
POLICY, TURNS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
# Threads sleep when they have spun for so many turns. In GNU's OpenMP, which PyTorch uses, the number overrides the
# policy; other implementations know the policy alone.
SPINNING: Mapping[str, str] = {POLICY: "PASSIVE", TURNS: "300000"}
SLEEPING: Mapping[str, str] = {POLICY: "PASSIVE", TURNS: "3000"}
# What other programs may take of all cores together before threads sleep.
_TAKEN_CORES = 0.5
_LOOK_SECONDS = 0.1
_STAT = Path("/proc/stat")


def for_neighbours(given: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """Return the variables of a child whose cores another child of the same run will want, whatever is free now."""
    return {} if POLICY in given or TURNS in given else SLEEPING


def thread_variables(given: Mapping[str, str], stat: Path = _STAT) -> dict[str, str]:
    """Return the variables of a child that starts now; what ``given`` has of them stays.

    Args:
        given: the environment that the child gets.
        stat: the kernel's times of each core.
    """
    usable, cores = usable_cores(), bound_cores()
    limited = usable < len(cores)
    found: dict[str, str] = {}
    if limited and THREADS not in given and CPU_BIND not in given:
        # vLLM would bind a thread to each core that it sees.
        found = {THREADS: str(usable), CPU_BIND: "nobind"}
    if POLICY in given or TURNS in given:
        # A user's own policy gets no number of turns, which would override it.
        return found if POLICY in given else found | {POLICY: SLEEPING[POLICY]}
    # A quota pays for spinning as for work.
    alone = not limited and free_cores(cores, stat) >= len(cores) - _TAKEN_CORES
    return found | dict(SPINNING if alone else SLEEPING)


def free_cores(cores: tuple[int, ...], stat: Path = _STAT) -> float:
    """Return how many of ``cores`` were idle over the last moment, as a sum of shares; 0 where no one tells."""
    before = _times(cores, stat)
    time.sleep(_LOOK_SECONDS)
    after = _times(cores, stat)
    free = 0.0
    for core, (idle, whole) in before.items():
        if core in after and after[core][1] > whole:
            free += (after[core][0] - idle) / (after[core][1] - whole)
    return free


def _times(cores: tuple[int, ...], stat: Path) -> dict[int, tuple[int, int]]:
    """(idle, all) ticks of each core. Its line has user, nice, system, idle, iowait, irq, softirq, steal and others."""
    try:
        lines = stat.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    times = {int(row[0][3:]): [int(value) for value in row[1:9]] for row in rows}
    return {core: (times[core][3] + times[core][4], sum(times[core])) for core in cores if core in times}
