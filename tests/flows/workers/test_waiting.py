"""How a child's threads wait: by the cores that are free, the user's own settings, a quota, a neighbour of the run."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.workers.pool import waiting
from flows.workers.pool.waiting import SLEEPING, SPINNING, for_neighbours, free_cores, thread_variables

IDLE, BUSY = "cpu{0} 100 0 0 {1} 0 0 0 0 0 0", "cpu{0} {1} 0 0 100 0 0 0 0 0 0"


class Stat:
    """Two looks at the kernel's times of cores 0 to 3, where some are busy in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path, busy: set[int]) -> None:
        self.file = file
        self._busy = busy
        self._write(1000)
        monkeypatch.setattr(waiting.time, "sleep", lambda _seconds: self._write(2000))
        monkeypatch.setattr(waiting, "bound_cores", lambda: (0, 1))

    def _write(self, ticks: int) -> None:
        lines = [(BUSY if core in self._busy else IDLE).format(core, ticks) for core in range(4)]
        self.file.write_text("\n".join(["cpu  1 2 3 4", *lines, "intr 5"]), encoding="utf-8")


@pytest.mark.parametrize(("busy", "variables"), [(set(), SPINNING), ({2, 3}, SPINNING), ({1}, SLEEPING)])
def test_threads_spin_where_no_other_program_wants_their_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy: set[int], variables: dict[str, str]
) -> None:
    stat = Stat(monkeypatch, tmp_path / "stat", busy)
    monkeypatch.setattr(waiting, "usable_cores", lambda: 2)
    assert thread_variables({}, stat.file) == variables


def test_a_quota_below_the_cores_sets_the_threads_and_lets_them_sleep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = Stat(monkeypatch, tmp_path / "stat", set())
    monkeypatch.setattr(waiting, "usable_cores", lambda: 1)
    threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert thread_variables({}, stat.file) == {**SLEEPING, **threads}
    assert thread_variables({"OMP_NUM_THREADS": "7"}, stat.file) == SLEEPING


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = Stat(monkeypatch, tmp_path / "stat", set())
    monkeypatch.setattr(waiting, "usable_cores", lambda: 2)
    assert thread_variables({"OMP_WAIT_POLICY": "ACTIVE"}, stat.file) == {}
    assert thread_variables({"GOMP_SPINCOUNT": "7"}, stat.file) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert for_neighbours({"GOMP_SPINCOUNT": "7"}) == {} and for_neighbours({}) == SLEEPING


def test_no_times_are_no_free_cores(tmp_path: Path) -> None:
    assert free_cores((0, 1), tmp_path / "missing") == 0


def test_a_busy_program_takes_a_core_of_the_real_machine() -> None:
    endless = [sys.executable, "-c", "while True: pass"]
    cores = waiting.bound_cores()
    programs = [subprocess.Popen(endless) for _ in cores]
    try:
        waiting.time.sleep(0.5)
        assert free_cores(cores) < 0.5 * len(cores)
    finally:
        for program in programs:
            program.kill()
            program.wait()
