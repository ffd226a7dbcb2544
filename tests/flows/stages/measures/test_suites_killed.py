"""A whole run by the command line with suites, killed with -9 while it measures them, and the same undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ROOT
from tests.support.suite_files import write_suite_job, write_tasks

pytestmark = pytest.mark.whole

# Answers of the engine to tasks that are on disk when the run is killed: the first ones of 96.
ANSWERS = "suite_samples.partial/lm_eval/answers.jsonl"


def command(job: Path, root: Path) -> list[str]:
    suites = [
        {"kind": "ifeval", "file": str(job / "ifeval.jsonl")},
        {"kind": "lm_eval", "tasks": ["tiny_choice", "tiny_words"], "include": str(job / "tasks")},
    ]
    given = (f"evaluation.suites={json.dumps(suites)}", "gate.suites={ifeval: {min_change: -0.5}}")
    return [sys.executable, "-m", "flows", "run", str(job / "run.yaml"), *given, "--run-dir", str(root)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_suite_job(folder)
    write_tasks(folder / "tasks")
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect"), "HF_HUB_OFFLINE": "1"}


def finished(job: Path, root: Path) -> None:
    done = subprocess.run(
        command(job, root), env=environment(root.parent), capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr


def measured(root: Path, round_: int) -> dict[str, Any]:
    found = root / f"round_{round_:03d}" / "suites"
    files = ("metrics.json", "ifeval.json", "lm_eval.json")
    return {name: json.loads((found / name).read_text()) for name in files}


def kill_in(place: Path, job: Path, root: Path) -> None:
    """Start the run and kill it with -9 once the file ``place`` has lines."""
    process = subprocess.Popen(
        command(job, root), env=environment(root.parent), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 800
    while not (place.is_file() and place.stat().st_size):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_that_is_killed_in_its_suites_ends_with_the_numbers_of_one_that_is_not(job: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(job, whole)
    for round_ in (0, 1):
        place = killed / f"round_{round_:03d}" / ANSWERS
        kill_in(place, job, killed)
        left = place.read_bytes()
        assert left.count(b"\n") > 0 and not (killed / f"round_{round_:03d}" / "suites").exists()
    finished(job, killed)
    for round_ in (0, 1):
        assert measured(killed, round_) == measured(whole, round_)
    rules = json.loads((killed / "round_001" / "gate" / "decision.json").read_text())
    assert "suite_ifeval_change" in rules["measures"]
