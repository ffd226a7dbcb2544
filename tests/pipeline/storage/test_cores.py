"""Cores that a process may keep busy: both versions of cgroups, groups inside groups, what is not there."""

import os
from pathlib import Path

import pytest

from pipeline.storage import cores
from pipeline.storage.cores import bound_cores, cpu_quota, usable_cores


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="utf-8")


def _member(folder: Path, *lines: str) -> Path:
    file = folder / "cgroup"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_the_smallest_limit_of_all_groups_around_counts(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    _group(mount, cpu__max="max 100000")
    _group(mount / "outer", cpu__max="150000 100000")
    _group(mount / "outer" / "inner", cpu__max="800000 100000")
    assert cpu_quota(_member(tmp_path, "0::/outer/inner"), mount) == 1.5
    assert cpu_quota(_member(tmp_path, "0::/"), mount) is None


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    _group(mount, cpu__max="200000 100000")
    assert cpu_quota(_member(tmp_path, "0::/docker/of-the-host"), mount) == 2.0


@pytest.mark.parametrize(("named", "folder"), [("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu")])
def test_the_first_version_names_its_controllers(tmp_path: Path, named: str, folder: str) -> None:
    mount = tmp_path / "fs"
    _group(mount / folder, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    _group(mount / folder / "run", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    lines = ["4:memory:/run", f"1:{named}:/run", "0::/"]
    assert cpu_quota(_member(tmp_path, *lines), mount) == 0.5
    assert cpu_quota(_member(tmp_path, f"1:{named}:/"), mount) is None


def test_no_cgroups_are_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (64.0, 8), (2.0, 2), (2.5, 3), (0.2, 1)])
def test_a_quota_is_rounded_up_and_never_above_the_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int
) -> None:
    monkeypatch.setattr(cores, "bound_cores", lambda: tuple(range(8)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == count


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to cores")
def test_only_cores_that_it_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert bound_cores() == (min(before),)
    finally:
        os.sched_setaffinity(0, before)
