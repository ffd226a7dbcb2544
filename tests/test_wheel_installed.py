"""A wheel in an environment without the checkout: the quickstart in small, a sweep and a deployment by command."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from prefloop import load_run
from tests.support.places import ROOT
from tests.support.prefloop_up import started_up

# On a busy machine each of these takes long.
pytestmark = [pytest.mark.whole, pytest.mark.timeout(3600)]

SMALL = (
    "policy.hidden_size=32", "policy.layers=1", "prompts.prompts=60", "held_out.prompts=20", "warm_start.epochs=1",
    "sampling.n=2", "sampling.max_tokens=24", "rounds=1",
)  # fmt: skip


def command(*words: object, cwd: Path, python: Path | str = sys.executable) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PREFECT_HOME": str(cwd / "prefect")}
    done = subprocess.run([str(python), *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as people build it: a source distribution, and the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
    archive = folder / command("-c", code, folder, cwd=ROOT).split()[-1]
    command("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, archive, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """An environment that has the wheel, and the packages of this one without the link to the checkout."""
    command("-m", "venv", "env", cwd=wheel.parent)
    made = wheel.parent / "env" / "bin" / "python"
    site = command(
        "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent, python=made
    ).strip()
    command("-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=wheel.parent, python=made)
    (Path(site) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_a_wheel_from_the_source_distribution_is_that_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command("-c", code, tmp_path, cwd=ROOT)
    (direct,) = tmp_path.glob("*.whl")

    def contents(file: Path) -> dict[str, int]:
        return {entry.filename: entry.CRC for entry in zipfile.ZipFile(file).infolist()}

    assert contents(wheel) == contents(direct)


def test_only_prefloop_can_be_imported(python: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.util import find_spec; import prefloop, prefloop.pipeline; print(prefloop.__file__); "
        "print([find_spec(name) for name in ('pipeline', 'flows', 'reward_models', 'configs', 'tests')])"
    )
    where, others = command("-c", code, cwd=tmp_path, python=python).splitlines()
    assert where.startswith(str(python.parents[1])) and others == str([None] * 5)


def test_the_quickstart_runs_from_the_wheel(python: Path, tmp_path: Path) -> None:
    told = command(python.with_name("prefloop"), "run", "quickstart", *SMALL, cwd=tmp_path, python="/usr/bin/env")
    assert "report: " in told
    run = load_run(tmp_path / "runs" / "quickstart")
    assert [facts.round for facts in run.rounds] == [0, 1] and run.report.is_file()
    code = "from prefloop import load_run; print(load_run('runs/quickstart').pairs(1).num_rows)"
    assert int(command("-c", code, cwd=tmp_path, python=python)) == run.pairs(1).num_rows > 0


def test_child_processes_of_every_kind_start(python: Path, tmp_path: Path) -> None:
    words = ["quickstart", *SMALL, "sampler.kind=transformers", "training.weight_decay=0.0,0.1", "--steps", "1"]
    told = command("-m", "prefloop", "sweep", *words, cwd=tmp_path, python=python)
    assert "weight_decay" in told
    planned = command("-m", "prefloop", "plan", "quickstart", *SMALL[:-1], "--json", cwd=tmp_path, python=python)
    assert json.loads(planned[planned.index("{") :])


def test_a_deployment_names_a_shipped_config_and_the_wheel_s_flow(python: Path, tmp_path: Path) -> None:
    with started_up(tmp_path, (str(python), "-m", "prefloop")) as up:
        up.prefloop("deploy", "quickstart", *SMALL, "sampler.kind=transformers", "--name", "wheel")
        told = up.deployment("iterative/wheel")
        assert told["entrypoint"] == "prefloop.flows.iterative.iterative"
        assert told["parameters"]["config"] == ["quickstart"]
        done = up.wait_for(up.start("iterative/wheel"), "COMPLETED", "FAILED", "CRASHED")
        assert done["state"]["type"] == "COMPLETED", done["state"]["message"]
    assert [facts.round for facts in load_run(tmp_path / "runs" / "quickstart").rounds] == [0, 1]
