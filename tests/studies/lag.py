"""Does a lag of one round cost reward? The quickstart's task, small, with ``training.lag`` 0 and 1.

    python -m tests.studies.lag [--seeds N] [--json FILE] [--record]

All runs go on from one warm start; a seed decides samples and the order of training. What counts is the reward of
sampled responses to held-out prompts after the last round, after as many updates.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from flows.loop.rounds import Stages, labelled, learn, start_run
from flows.run_folder.ancestry import parent, sampled_round
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.evaluation.intervals import student_t
from pipeline.storage.run_folder import RunFolder
from tests.benchmarks.recorded_runs import add_options, circumstances, keep, table
from tests.studies.planted_hack import InThisProcess
from tests.support.places import ROOT

CONFIG = ROOT / "configs" / "quickstart.yaml"
RESULTS = Path(__file__).with_name("RESULTS.md")
ROUNDS, LAGS = 3, (0, 1)
SETTINGS = [
    "policy={kind: scratch, vocab_size: 500, hidden_size: 96, layers: 2}", "sampler={kind: transformers}",
    "prompts.prompts=288", "held_out.prompts=128", "warm_start.epochs=10", f"rounds={ROUNDS}", "gate=null",
    "sampling.n=4", "sampling.max_tokens=56", "evaluation.samples=2", "training.epochs=2", "check_disk=false",
]  # fmt: skip
Facts = dict[str, Any]


class PlainStages(Stages):
    """The stages of a run, one after the other, in this process."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self._run, self._config = run, config
        self._workers: Any = InThisProcess(config)

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        run_stage(Context(self._run, self._config), round_, name, self._workers)
        return self._run.stage(round_, name).title


def arm(root: Path, settings: list[str], rounds: int = ROUNDS) -> list[Facts]:
    """What ``root`` lacks of so many rounds; the metrics of each."""
    config, run = load_config([CONFIG], settings), RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    stage = PlainStages(run, config)
    start_run(stage, config)
    for number in range(1, rounds + 1):
        sampled = run.stage(sampled_round(run, config, number), "policy").title
        policy = run.stage(parent(run, config, number), "policy").title
        learn(stage, config, number, stage("pairs", number, labelled(stage, config, number, sampled)), policy)
    places = [run.stage(number, "evaluation").folder / "metrics.json" for number in range(rounds + 1)]
    return [json.loads(place.read_text(encoding="utf-8")) for place in places]


def measure(given: argparse.Namespace) -> Facts:
    """Both arms of each seed."""
    found: Facts = {"circumstances": circumstances("tests.studies.lag"), "runs": []}
    with tempfile.TemporaryDirectory(prefix="lag_") as name:
        start = Path(name) / "start"
        arm(start, SETTINGS, 0)
        policy = f"policy={{kind: pretrained, path: {RunFolder(start).stage(0, 'policy').folder}}}"
        for seed in range(given.seeds):
            for lag in LAGS:
                own = [policy, "warm_start=null", f"seed={seed}", f"training.lag={lag}"]
                rounds = arm(Path(name) / f"{seed}_{lag}", [*SETTINGS[1:], *own])
                kept = ("reward", "kl_to_start", "kl_to_previous")
                found["runs"].append(
                    {"seed": seed, "lag": lag, "rounds": [{k: r.get(k) for k in kept} for r in rounds]}
                )
                print(f"seed {seed} lag {lag}:", " ".join(f"{r['reward']:.2f}" for r in rounds), flush=True)
                if given.json is not None:
                    given.json.write_text(json.dumps(found), encoding="utf-8")
    return found


def last_rewards(found: Facts, lag: int) -> list[float]:
    """After the last round, seed by seed."""
    return [run["rounds"][-1]["reward"] for run in found["runs"] if run["lag"] == lag]


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean."""
    half = student_t(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def tables(found: Facts) -> str:
    """Markdown."""
    rows = [
        [
            f"seed {run['seed']}, lag {run['lag']}",
            *(f"{r['reward']:.2f}" for r in run["rounds"]),
            f"{run['rounds'][-1]['kl_to_start']:.2f}",
            f"{run['rounds'][-1]['kl_to_previous']:.3f}",
        ]
        for run in found["runs"]
    ]
    header = ["", *(f"reward {number}" for number in range(ROUNDS + 1)), "KL to start", "KL to previous"]
    low, high = interval(last_rewards(found, 0))
    mean, lagged = statistics.mean(last_rewards(found, 0)), statistics.mean(last_rewards(found, 1))
    inside = "inside" if low <= lagged <= high else "outside"
    return (
        f"{table(header, rows)}\n\nReward after round {ROUNDS}: {mean:.2f} [{low:.2f}, {high:.2f}] without a lag, "
        f"{lagged:.2f} with lag 1: {inside} the 95 % interval of the mean (Student's t)."
    )


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.lag", description=__doc__)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given, RESULTS)


if __name__ == "__main__":
    main()
