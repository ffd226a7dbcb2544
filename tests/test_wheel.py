"""The wheel: one import name, every import in it leads somewhere in it, and a checkout keeps its own names."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from hatch_build import MOVED, rewritten
from tests.support.import_graph import modules
from tests.support.places import ROOT


def build(folder: Path, target: str) -> Path:
    """What ``pip wheel`` and ``pip install -e`` have hatchling build, without an environment of its own."""
    code = f"import sys; from hatchling.build import build_{target}; print(build_{target}(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder / made.stdout.split()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(folder, "wheel")) as wheel:
        assert [name for name, count in Counter(wheel.namelist()).items() if count > 1] == []
        wheel.extractall(folder / "site")
    return folder / "site"


def is_there(unpacked: Path, name: str) -> bool:
    """Whether ``find_spec`` finds the module in the wheel, without an import of the packages around it."""
    around = unpacked.joinpath(*name.split(".")[:-1])
    return PathFinder.find_spec(name, [str(around)]) is not None


def in_wheel(unpacked: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=unpacked.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_only_name_is_prefloop(unpacked: Path) -> None:
    assert sorted(path.name for path in unpacked.iterdir()) == ["prefloop", "prefloop-0.1.0.dist-info"]
    scripts = (unpacked / "prefloop-0.1.0.dist-info" / "entry_points.txt").read_text()
    assert scripts.split() == ["[console_scripts]", "prefloop", "=", "prefloop.__main__:main"]


def test_it_has_every_module_and_config_of_the_checkout(unpacked: Path) -> None:
    here = {*modules(ROOT, ["prefloop"]), *(f"prefloop.{name}" for name in modules(ROOT, MOVED))}
    assert modules(unpacked, ["prefloop"]).keys() == here
    inside = unpacked / "prefloop"
    for pattern in ("configs/**/*.yaml", "flows/**/*.js", "flows/**/*.jinja", "reward_models/**/*.jinja"):
        ours = {file.relative_to(ROOT) for file in ROOT.glob(pattern)}
        assert ours and {file.relative_to(inside) for file in inside.glob(pattern)} == ours
    assert (unpacked / "prefloop" / "py.typed").is_file()


def test_every_import_leads_to_a_module_of_the_wheel(unpacked: Path) -> None:
    files = modules(unpacked, ["prefloop"])
    wanted: set[str] = set()
    for file in files.values():
        tree = ast.parse(file.read_text())
        compile(tree, str(file), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
    assert {name for name in wanted if name.partition(".")[0] in MOVED} == set()
    ours = sorted(name for name in wanted if name.partition(".")[0] == "prefloop")
    assert len(ours) > 200
    assert [name for name in (*ours, "prefloop.absent") if not is_there(unpacked, name)] == ["prefloop.absent"]


def test_modules_that_run_as_processes_are_named_as_they_are_called_there(unpacked: Path) -> None:
    code = (
        "import json; from prefloop.flows.workers.messages import LABELLER, SAMPLER, TRAINER; "
        "from prefloop.flows.commands.sweep import _PROGRAM; from prefloop.running import _CHILD; "
        "print(json.dumps([LABELLER.entry, SAMPLER.entry, TRAINER.entry, _PROGRAM + '.__main__', _CHILD]))"
    )
    names = json.loads(in_wheel(unpacked, "-c", code))
    assert len(names) == 5 and [name for name in names if not is_there(unpacked, name)] == []
    watched = (sys.executable, "-c", "print('watched')")
    assert in_wheel(unpacked, "-m", "prefloop.pipeline.sampling.watchdog", str(os.getpid()), *watched) == "watched\n"


def test_its_commands_know_the_shipped_configs_by_name(unpacked: Path) -> None:
    told = in_wheel(unpacked, "-m", "prefloop", "run", "quickstart", "--dry-run", "sampler.kind=transformers")
    assert "round_003/policy" in told
    assert in_wheel(unpacked, "-m", "prefloop", "losses", "simpo").startswith("simpo")


def test_an_editable_installation_keeps_the_names_of_the_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, "editable")) as wheel:
        (link,) = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert wheel.read(link).decode().split() == [str(ROOT)]
        assert not [name for name in wheel.namelist() if name.endswith(".py")]


def test_only_names_in_import_statements_change() -> None:
    text = (
        '"""from pipeline.types import Pair"""\n'
        "import json, pipeline.errors as errors\n"
        "Ω = 1; from flows import report\n"
        "def f():\n    from reward_models.rules import (\n        a,\n    )\n    from pipelines import b\n"
        "    from . import flows\n    pipeline.types = 'pipeline'\n"
    )
    expected = (
        text.replace("json, pipeline", "json, prefloop.pipeline")
        .replace("from flows import", "from prefloop.flows import")
        .replace("from reward_models", "from prefloop.reward_models")
    )
    assert rewritten(text, "x.py") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nimport pipeline.types", "x.py, line 2: 'import pipeline.types' needs 'as'"),
        ("run('-m', 'flows.workers.child')", "'flows.workers.child' names a module"),
        ("serve = 'flows.guard:app'", "names a module"),
        ("from \\\n  pipeline import x", "on one line"),
    ],
)
def test_a_build_stops_where_no_prefix_would_do(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rewritten(text, "x.py")
