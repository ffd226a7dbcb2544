"""The quickstart, seed by seed and on both kinds of CPU arithmetic: its time, and whether every round gains.

``python -m tests.benchmarks.quickstart --record``

Each run is one of ``configs/quickstart.yaml`` in a process of its own, with the arithmetic of this CPU or held to AVX2
by the libraries' own switches. CPU seconds are those of all its processes, so they say what a run costs on a machine
that is shared; wall time is that of a quickstart only where nothing else runs. Nothing of one run is used by another.
Runs that the file of ``--json`` holds already are not run again, so a measurement can be stopped and go on.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.isolated import ROOT
from tests.benchmarks.recorded_runs import Facts, add_options, bar, bars_table, circumstances, keep, save, table
from tests.benchmarks.timed_rounds import run_quickstart

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
KINDS: dict[str, dict[str, str]] = {"this CPU's": {}, "AVX2": AVX2}
QUICK = ["prompts.prompts=240", "held_out.prompts=16", "prompts_per_round=8", "warm_start.max_steps=5", "rounds=1"]
# Seconds of a run on two cores with nothing beside it.
LIMITS = {"this CPU's": 180.0, "AVX2": 360.0}


def measure(folder: Path, kind: str, seed: int, settings: list[str]) -> Facts:
    """One run: its seconds and the measures of its rounds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with patch.dict("os.environ", KINDS[kind]):
        run = run_quickstart(folder, [f"seed={seed}", *settings])
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    show = [sys.executable, "-m", "flows", "show", str(run), "--json"]
    rounds = json.loads(subprocess.run(show, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    return {"kind": kind, "seed": seed, "wall": wall, "cpu": used, "rounds": rounds}


def judged(run: Facts) -> dict[str, bool]:
    """What must hold of a run's rounds; the last four are what ``.ci/run`` asks of seed 0."""
    start, end = run["rounds"][0], run["rounds"][-1]
    rewards = [one["reward"] for one in run["rounds"]]
    return {
        "every round gains": all(later > earlier for earlier, later in itertools.pairwise(rewards)),
        "greedy slot errors at most half": end["slot_error_rate"] <= 0.5 * start["slot_error_rate"],
        "sampled slot errors at most half": end["slot_error_rate_sampled"] <= 0.5 * start["slot_error_rate_sampled"],
        "reward rises": end["reward"] > start["reward"],
        "wins against the start": end["win_rate_vs_start_ci"][0] > 0.5,
    }


def tables(runs: list[Facts]) -> str:
    """Markdown: a row a run, and the bars. Errors are shares of slots, greedy / sampled."""
    rows = []
    for run in runs:
        start, end = run["rounds"][0], run["rounds"][-1]
        errors = [f"{one['slot_error_rate']:.1%} / {one['slot_error_rate_sampled']:.1%}" for one in (start, end)]
        rewards = " ".join(f"{one['reward']:.2f}" for one in run["rounds"])
        failed = [name for name, holds in judged(run).items() if not holds]
        seconds = [f"{run['wall']:.0f}", f"{run['cpu']:.0f}"]
        rows.append([f"{run['kind']}, {run['seed']}", *seconds, rewards, *errors, ", ".join(failed) or "all hold"])
    header = [
        "arithmetic, seed",
        "wall s",
        "CPU s",
        "reward by round",
        "slot errors, start",
        "slot errors, end",
        "checks",
    ]
    bars = [
        bar(f"wall s, {kind}", max((r["wall"] for r in runs if r["kind"] == kind), default=None), most, at_least=False)
        for kind, most in LIMITS.items()
    ]
    gaining = sum(all(judged(run).values()) for run in runs) / len(runs)
    bars.append(bar("share of runs in which every round gains and all checks hold", gaining, 1.0, at_least=True))
    return "\n\n".join([table(header, rows), bars_table(bars)])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... on each kind of arithmetic")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of arithmetic; default: both")
    add_options(parser)
    given = parser.parse_args()
    earlier = json.loads(given.json.read_text(encoding="utf-8"))["runs"] if given.json and given.json.exists() else []
    found: Facts = {"circumstances": circumstances("tests.benchmarks.quickstart"), "runs": earlier}
    known = {(run["kind"], run["seed"]) for run in earlier}
    with tempfile.TemporaryDirectory(prefix="quickstart_") as folder:
        for seed in range(1 if given.quick else given.seeds):
            for kind in given.kinds:
                if (kind, seed) in known:
                    continue
                place = Path(folder) / f"{seed}_{kind[:4]}"
                found["runs"].append(measure(place, kind, seed, QUICK if given.quick else []))
                save(found, given)
    keep(found, tables(found["runs"]), given)


if __name__ == "__main__":
    main()
