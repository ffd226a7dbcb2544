"""Measurements in child processes: each alone, with all cores, and none that another one has warmed or filled."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.workers.pool.waiting import POLICY, TURNS, thread_variables
from tests.support.places import ROOT

Facts = dict[str, Any]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def measure_apart(
    module: str,
    job: Mapping[str, Any],
    limit: float = 1800,
    *,
    ours: bool = True,
    waiting: Mapping[str, str] | None = None,
) -> Facts:
    """What ``python -m module`` says of ``job``; with ``failed`` alone where it did not end well.

    Args:
        module: has a ``main`` that calls ``serve``.
        job: anything that JSON can hold.
        limit: seconds.
        ours: threads wait for each other as in prefloop's own processes; else as PyTorch has them wait, which is faster
            in a process that has the machine to itself.
        waiting: variables that say how they wait, in place of both.

    Returns:
        what the child handed to ``serve``.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name not in (POLICY, TURNS)}
        if waiting is None:
            waiting = thread_variables({}) if ours else {}
        environment |= waiting
        environment |= {"OMP_NUM_THREADS": str(cores()), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_HOME": str(folder / "hub"), "TRL_EXPERIMENTAL_SILENCE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", module, str(folder)]
        with (folder / "log").open("w+", encoding="utf-8") as log:
            try:
                subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=limit, check=True)
            except subprocess.TimeoutExpired:
                return {"failed": f"longer than {limit:g} s"}
            except subprocess.CalledProcessError as error:
                log.seek(0)
                return {"failed": f"exit {error.returncode}: {_last_line(log.read())}"}
        facts: Facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return facts


def serve(measure: Callable[[Facts, Path], Mapping[str, Any]]) -> None:
    """The child's side: call ``measure`` with the job and a scratch folder, and hand back what it returns."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    facts = measure(job, folder)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
