"""A torchvision that breaks transformers is named, with what to do, before a traceback."""

import sys
from pathlib import Path

import pytest

from flows.commands.cli.builds import require_fitting_torchvision
from pipeline.errors import UserError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with a torch for CPUs, found before this environment's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    put(tmp_path, "torch", "2.13.0+cpu")
    return tmp_path


def put(folder: Path, name: str, version: str, code: str = "") -> None:
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if name != "torch":
        (folder / f"{name}.py").write_text(code)


def test_a_build_that_fails_is_refused_with_what_removes_it(installed: Path) -> None:
    put(installed, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision nms does not exist')")
    with pytest.raises(UserError, match=r"torchvision 0\.28\.0 does not fit torch 2\.13\.0\+cpu.*nms.*pip uninstall"):
        require_fitting_torchvision()


def test_a_plain_build_that_can_be_imported_is_fine(installed: Path) -> None:
    put(installed, "torchvision", "0.28.0")
    require_fitting_torchvision()


def test_the_build_for_cpus_is_not_even_imported(installed: Path) -> None:
    put(installed, "torchvision", "0.28.0+cpu", "raise RuntimeError('imported')")
    require_fitting_torchvision()
