"""The map of the house: how full a room is, who may import whom, and who does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.import_graph import against, circles, crowded, graph, homes, imported, modules
from tests.support.places import ROOT

PACKAGES = ("prefloop", "flows", "reward_models", "pipeline")
MODULES = modules(ROOT, PACKAGES)
GRAPH = graph(ROOT, PACKAGES)


def documentation(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


# Rooms, the highest first; each may import from those below it.
PIPELINE = [
    ("pipeline.training", "pipeline.sampling"),
    ("pipeline.images",),
    ("pipeline.data", "pipeline.models", "pipeline.losses", "pipeline.evaluation"),
    ("pipeline.storage",),
    ("pipeline.config",),
    ("pipeline.errors", "pipeline.safe_text"),
    ("pipeline.types",),
]
REWARD_MODELS = [
    ("reward_models.images",),
    ("reward_models.build", "reward_models.training"),
    ("reward_models.ensemble", "reward_models.people"),
    ("reward_models.local",),
    ("reward_models.judge", "reward_models.rules", "reward_models.function", "reward_models.formulas"),
    ("reward_models.answers",),
    ("reward_models.labeller",),
]
FLOWS = [
    ("flows.__main__",),
    ("flows.commands",),
    ("flows.iterative", "flows.offline"),
    ("flows.loop.entry",),
    ("flows.loop.opening", "flows.loop.preparation", "flows.loop.finished"),
    ("flows.loop.stage_tasks",),
    ("flows.loop.rounds", "flows.loop.resources"),
    ("flows.loop.object_store",),
    ("flows.stages",),
    ("flows.planning",),
    ("flows.prefect_api", "flows.preflight"),
    ("flows.workers",),
    ("flows.report",),
    ("flows.run_folder",),
]
PREFLOOP = [
    ("prefloop.__main__", "prefloop.child", "prefloop.deployable", "prefloop.running"),
    ("prefloop.results",),
    ("prefloop.tables", "prefloop.losses"),
]
TORCH_FREE = [name for name, file in MODULES.items() if "torch-free" in documentation(file).lower()]
HEAVY = {"torch", "transformers", "accelerate", "peft", "vllm", "prefect"}


def test_no_folder_has_more_than_fourteen_entries() -> None:
    assert crowded(ROOT, PACKAGES, most=14) == {}


def test_no_module_imports_itself_through_others() -> None:
    assert circles(GRAPH) == []


@pytest.mark.parametrize("order", [[(package,) for package in PACKAGES], PREFLOOP, PIPELINE, REWARD_MODELS, FLOWS])
def test_imports_go_downwards(order: list[tuple[str, ...]]) -> None:
    assert against(GRAPH, order) == []


@pytest.mark.parametrize("order", [PREFLOOP, FLOWS, REWARD_MODELS, PIPELINE], ids=PACKAGES)
def test_every_module_is_in_a_room(order: list[tuple[str, ...]]) -> None:
    rooms = [room for step in order for room in step]
    package = rooms[0].partition(".")[0]
    inside = [name for name in MODULES if name.startswith(f"{package}.") and name != f"{package}.loop"]
    assert [name for name in inside if not any(name == room or name.startswith(f"{room}.") for room in rooms)] == []


def plant(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_a_circle_is_found_through_others_and_in_functions(tmp_path: Path) -> None:
    plant(tmp_path, a__x="from a import y", a__y="import a.z", a__z="def f():\n    from a.x import g")
    assert circles(graph(tmp_path, ["a"]))[0] == "a.x -> a.y -> a.z -> a.x"


def test_an_import_upwards_is_found_through_a_module_of_no_room(tmp_path: Path) -> None:
    plant(tmp_path, a__low__x="from a.between import f", a__between="import a.high.y", a__high__y="")
    assert against(graph(tmp_path, ["a"]), [("a.high",), ("a.low",)]) == ["a.low.x -> a.between -> a.high.y"]
    assert against(graph(tmp_path, ["a"]), [("a.low",), ("a.high",)]) == []


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    plant(tmp_path, **{f"a__b__m{number}": "" for number in range(4)})
    assert crowded(tmp_path, ["a"], most=3) == {"a/b": 4}


def test_a_public_name_has_one_home() -> None:
    # Idioms that mean the same wherever they stand: a module's logger, an entry point, type variables; and a run is
    # started by one name, as a command and from Python.
    idioms = {"logger", "main", "P", "T", "run"}
    several = {name: places for name, places in homes(MODULES).items() if len(places) > 1 and name not in idioms}
    assert several == {}


def test_a_name_with_two_homes_is_found(tmp_path: Path) -> None:
    plant(tmp_path, a__x="class Pair: ...\n_own = 1", a__y="Pair, _own = 1, 2")
    assert homes(modules(tmp_path, ["a"])) == {"Pair": ["a.x", "a.y"]}


def test_files_stay_short() -> None:
    assert [name for name, file in MODULES.items() if len(file.read_text().splitlines()) > 300] == []


# The first module that loads something heavy ends it: those after it could not be told from it.
LOADED = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    heavy = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
    if heavy:
        sys.exit(" ".join((name, *heavy)))
"""


def loaded(*names: str) -> str:
    """The first of the modules that loads something heavy, and what, in an interpreter that has loaded nothing."""
    command = [sys.executable, "-c", LOADED, ",".join(sorted(HEAVY)), *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr.strip()


def test_a_module_that_calls_itself_torch_free_loads_no_torch() -> None:
    assert len(TORCH_FREE) > 60
    assert loaded(*TORCH_FREE) == ""


def test_a_module_that_loads_torch_is_told_with_what_it_loads() -> None:
    assert loaded("pipeline.types", "pipeline.losses.links", "pipeline.errors").startswith(
        "pipeline.losses.links torch"
    )
    assert "No module named" in loaded("pipeline.absent")


def importers(package: str) -> list[str]:
    return [name for name, file in MODULES.items() if package in {one.split(".")[0] for one in imported(file)}]


def test_prefect_is_known_in_flows_alone_and_vllm_in_one_file_and_matplotlib_where_pictures_are_drawn() -> None:
    assert {name.split(".")[0] for name in importers("prefect")} == {"flows"}
    assert importers("vllm") == ["pipeline.sampling.vllm_engine"]
    assert importers("matplotlib") == ["flows.report.link_plot", "reward_models.training.reliability_plot"]


def test_labellers_without_a_local_model_know_no_torch() -> None:
    of_images = [f"reward_models.images.{name}" for name in ("build", "batches", "image_classifier", "clip")]
    local = ("reward_models.local", "reward_models.training", "reward_models.build", *of_images)
    others = [name for name in MODULES if name.startswith("reward_models.") and not name.startswith(local)]
    assert len(others) > 15 and loaded(*others) == ""


def test_nothing_reads_pickles() -> None:
    def unsafe(file: Path) -> bool:
        text = file.read_text()
        return bool({"pickle", "dill", "joblib"} & imported(file)) or "torch.load(" in text or "torch.save(" in text

    assert [name for name, file in MODULES.items() if unsafe(file)] == []
