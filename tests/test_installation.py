"""Installing: the Makefile's list, the container's steps, and the hooks before a commit."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.places import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
# Development tools and extras that a run on text does not import.
NOT_NEEDED = {
    "ray",
    "wandb",
    "diffusers",
    "moto",
    "bitsandbytes",
    "trl",
    "mypy",
    "pytest",
    "ruff",
    "triton",
    "tensorboard",
}


def names(lines: str) -> list[str]:
    wanted = [line for line in lines.splitlines() if line and not line.startswith("#")]
    return [re.sub("[-_.]+", "-", Requirement(line).name.lower()) for line in wanted]


def test_the_needed_part_of_the_constraints_has_all_dependencies_and_no_tool() -> None:
    needed, marker, rest = CONSTRAINTS.partition("# What only")
    assert marker and "sed '/^\\# What only/" in (ROOT / "Makefile").read_text()
    assert not {*names(needed)} & NOT_NEEDED and {*names(rest.partition("\n")[2])} >= NOT_NEEDED
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    assert {*names("\n".join(re.findall(r'^  "([^"]+)"', block, re.M)))} <= {*names(needed)}
    every = [*names(needed), *names(rest.partition("\n")[2])]
    assert len(every) == len(set(every))
    # An index's address would be another one on another machine.
    assert "://" not in CONSTRAINTS and "--" not in CONSTRAINTS


def instructions(target: str) -> list[tuple[str, str]]:
    """Those of a build target and of what it is based on, in order."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            based, _, name = rest.partition(" AS ")
            stages[name] = [*stages.get(based, [])]
        elif word:
            stages[name].append((word, rest))
    return stages[target]


@pytest.mark.parametrize("target, extra", [("cpu", "cpu"), ("cuda", "gpu")])
def test_a_container_runs_without_root_and_says_whether_it_lives(target: str, extra: str) -> None:
    steps = instructions(target)
    words = [word for word, _ in steps]
    assert ("USER", "1000") in steps and words.index("USER") < words.index("COPY") < words.index("ENTRYPOINT")
    assert "HEALTHCHECK" in words and steps[-1] == ("RUN", f"make install EXTRA={extra}")
    assert not {"ADD", "EXPOSE"} & {*words}
    for word, rest in steps:
        if word == "COPY":
            sources = [one for one in shlex.split(rest)[:-1] if not one.startswith("--")]
            assert sources and all((ROOT / one).exists() for one in sources), rest


@pytest.mark.parametrize("command, healthy", [("prefloop up --limit 2", False), ("prefloop run up.yaml", True)])
def test_the_health_check_asks_a_server_only_where_one_runs(tmp_path: Path, command: str, healthy: bool) -> None:
    check = next(rest for word, rest in instructions("cpu") if word == "HEALTHCHECK").partition(" CMD ")[2]
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "cmdline").write_bytes("\0".join([*command.split(), ""]).encode())
    # Port 9 answers nobody.
    here = check.replace("/proc/", f"{tmp_path}/").replace(":4200", ":9").replace(" python ", f" {sys.executable} ")
    assert (subprocess.run(["sh", "-c", here], capture_output=True, check=False).returncode == 0) is healthy


@pytest.mark.whole
def test_the_container_s_steps_in_a_fresh_folder_make_a_small_installation_that_runs(tmp_path: Path) -> None:
    for word, rest in instructions("cpu"):
        if word == "COPY":
            *sources, place = [one for one in shlex.split(rest) if not one.startswith("--")]
            for source in sources:
                target = tmp_path / (place if (ROOT / source).is_dir() else source)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, target)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    install = ["make", "install", "EXTRA=cpu", f"PYTHON={sys.base_prefix}/bin/python3"]
    made = subprocess.run(install, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    assert re.search(r"^installed in \d+ s: ", made.stdout, re.M)
    packages = tmp_path / ".venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    files = [path for path in packages.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e9
    assert not {*names("\n".join(path.name.partition("-")[0] for path in packages.glob("*.dist-info")))} & NOT_NEEDED
    run = [str(tmp_path / ".venv" / "bin" / "prefloop"), "run", "configs/quickstart.yaml", "--run-dir", "run"]
    small = ["prompts.prompts=240", "held_out.prompts=16", "warm_start.max_steps=5", "rounds=1", "prompts_per_round=8"]
    ran = subprocess.run([*run, *small], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.whole
def test_the_hooks_refuse_a_commit_that_lint_refuses(tmp_path: Path) -> None:
    for file in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for package in ("prefloop", "pipeline", "flows", "reward_models"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    module = tmp_path / "pipeline" / "one.py"

    def hooks() -> str:
        subprocess.run(["git", "add", "."], cwd=tmp_path, check=True, capture_output=True)
        command = [sys.executable, "-m", "pre_commit", "run"]
        home = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is ("Failed" not in done.stdout), done.stdout + done.stderr
        failed: list[str] = re.findall(r"^([\w ]+?)\.+Failed$", done.stdout, re.M)
        return ", ".join(failed)

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    module.write_text('"""One."""\n\nimport os\n')
    assert hooks() == "ruff check"
    module.write_text('"""One."""\n\nONE = {  "a":1}\n')
    assert hooks() == "ruff format"
    module.write_text('"""One."""\n\nONE: int = "a"\n')
    assert hooks() == "mypy"
    module.write_text('"""One."""\n\nONE: int = 1\n')
    assert hooks() == ""


def test_the_hooks_fetch_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {hook["language"] for repository in config["repos"] for hook in repository["hooks"]} == {"system"}
