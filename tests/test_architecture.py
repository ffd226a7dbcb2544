"""The floors of the building, read from the import statements."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for part in ("pipeline", "reward_models", "flows") for file in (ROOT / part).rglob("*.py"))
FLOORS = {"pipeline": 0, "reward_models": 1, "flows": 2}
TORCH_FREE = [
    "types",
    "config",
    "cells",
    "contents",
    "distinct",
    "faults",
    "formats",
    "forms",
    "sparkline",
    "split",
    "step_log",
    "tables",
    "transcripts",
    "given",
    "edits",
    "examples",
    "example_table",
    "reference_cache",
    "configfile",
    "conversations",
    "comparisons",
    "reward_metrics",
    "reliability_plot",
    "store",
    "manifest",
    "digests",
    "intact",
    "rows",
    "data",
    "records",
    "pairs",
    "gold",
    "questions",
    "restaurants",
    "slots",
    "slot_claims",
    "slot_wordings",
    "sample",
    "handshake",
    "decision",
    "evaluate",
    "gate",
    "gate_measures",
    "label",
    "launch",
    "log_lines",
    "round_page",
    "plan",
    "plan_examples",
    "histograms",
    "progress",
    "round_facts",
    "rounds_table",
    "schedule",
]


def imports(file: Path) -> set[str]:
    """Top-level and full names of every module that ``file`` imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_imports_from_a_floor_above(file: Path) -> None:
    own = FLOORS[file.relative_to(ROOT).parts[0]]
    above = {name for name in imports(file) if FLOORS.get(name.split(".")[0], 0) > own}
    assert not above


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300


def importers(package: str) -> list[Path]:
    return [file for file in FILES if any(name.split(".")[0] == package for name in imports(file))]


def test_prefect_is_known_in_flows_alone_and_vllm_in_one_file_and_matplotlib_where_pictures_are_drawn() -> None:
    assert {file.parent.name for file in importers("prefect")} == {"flows", "commands"}
    assert [file.name for file in importers("vllm")] == ["sample_vllm.py"]
    assert [file.name for file in importers("matplotlib")] == ["plot.py", "reliability_plot.py"]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_config_types_store_and_pairing_know_no_torch(name: str) -> None:
    place = ROOT / "pipeline" / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    heavy = {"torch", "transformers", "accelerate", "peft", "vllm", "prefect"}
    assert files and not {module.split(".")[0] for file in files for module in imports(file)} & heavy


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.parent.name == "reward_models" and file.stem not in ("classifier", "pairwise")],
    ids=lambda file: file.stem,
)
def test_labellers_without_a_local_model_know_no_torch(file: Path) -> None:
    assert not {"torch", "transformers", "prefect"} & {module.split(".")[0] for module in imports(file)}


def test_nothing_reads_pickles() -> None:
    for file in FILES:
        text = file.read_text()
        assert not {"pickle", "dill", "joblib"} & imports(file)
        assert "torch.load(" not in text and "torch.save(" not in text
