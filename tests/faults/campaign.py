"""``python -m tests.faults.campaign``: the quickstart is killed again and again, and compared with one left alone."""

import argparse
import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.prefect_api.environment import prepare_environment
from tests.faults.fire import ROOT, Fire, draw_kill, prefloop_run
from tests.faults.results import largest_difference, results

# Neither changes a result: training goes on inside a round.
OFTEN = ["warm_start.checkpoint_every=25", "training.checkpoint_every=5"]
PATIENCE = 120.0
Row = dict[str, Any]


def undisturbed(folder: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Results of the job without a kill, made once a folder."""
    run = folder / "undisturbed"
    if not (run / "report.html").exists():
        Fire(run, prefloop_run(arguments, run), environment).finish()
    return results(run)


def under_fire(run: Path, arguments: list[str], environment: dict[str, str], lots: random.Random, kills: int) -> Fire:
    """One run that is killed ``kills`` times, unless it is over before."""
    for left in run.parent.glob(f"{run.name}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    fire = Fire(run, prefloop_run(arguments, run), environment)
    while len(fire.done) < kills and fire.shoot(draw_kill(lots, longest=25.0), PATIENCE):
        print(f"  {run.name}: kill {len(fire.done)}: {fire.done[-1]}", flush=True)
    fire.finish()
    return fire


def told(fire: Fire, seed: int, seconds: float) -> Row:
    """What became of a run, for ``kills.jsonl``."""
    return {
        "seed": seed,
        "kills": len(fire.done),
        "places": Counter(f"{kill.role} at {kill.point}" for kill in fire.done),
        "starts": fire.starts,
        "endings": {str(code): times for code, times in fire.endings.items()},
        "sampled_again_of_shards_in_flight": fire.repeated(),
        "seconds": round(seconds),
        "largest_logprob_difference": largest_difference(fire.run, fire.run.with_name("undisturbed")),
        "nothing_lost": fire.lost.nothing,
        "lost": asdict(fire.lost),
    }


@dataclass(slots=True)
class Campaign:
    """Runs that are under fire beside each other until there were enough kills; a line of ``kills.jsonl`` each."""

    folder: Path
    arguments: list[str]
    kills: int
    kills_a_run: int
    seed: int
    expected: dict[str, str]
    runs: list[Row] = field(default_factory=list)
    begun: int = 0
    # Kills that runs under way are to get.
    promised: int = 0
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def total(self) -> int:
        """Kills in the runs that are over."""
        return sum(int(run["kills"]) for run in self.runs)

    def lane(self, number: int) -> None:
        """One run after another, with a server of its own."""
        environment = {**os.environ, "PREFECT_HOME": str(self.folder / f"prefect_{number}")}
        while not self.failed:
            with self.lock:
                wanted = min(self.kills_a_run, self.kills - self.total() - self.promised)
                if wanted <= 0:
                    return
                self.promised += wanted
                seed, self.begun = self.seed + self.begun, self.begun + 1
            try:
                run = self._run(seed, wanted, environment)
            except BaseException:
                self.failed = True
                raise
            with self.lock:
                self.promised -= wanted
                self._add(run)

    def _run(self, seed: int, kills: int, environment: dict[str, str]) -> Row:
        began = time.monotonic()
        run = self.folder / f"killed_{seed:03d}"
        fire = under_fire(run, self.arguments, environment, random.Random(seed), kills)
        fire.compare(self.expected)
        return told(fire, seed, time.monotonic() - began)

    def _add(self, run: Row) -> None:
        self.runs.append(run)
        with (self.folder / "kills.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        print(f"{self.total()} of {self.kills} kills: {json.dumps(run)}", flush=True)


def main() -> int:
    """Kill until the number is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="altogether")
    parser.add_argument("--kills-a-run", type=int, default=20)
    parser.add_argument("--lanes", type=int, default=2, help="runs beside each other")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0, help="of the first run's kills")
    parser.add_argument("--go-on", action="store_true", help="count the runs of FOLDER too; the code must be the same")
    options = parser.parse_args()
    prepare_environment()
    folder = options.folder.resolve()
    if not options.go_on:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(ROOT / "configs" / "quickstart.yaml"), *OFTEN]
    expected = undisturbed(folder, arguments, {**os.environ, "PREFECT_HOME": str(folder / "prefect_0")})
    record = folder / "kills.jsonl"
    runs = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    campaign = Campaign(
        folder, arguments, options.kills, options.kills_a_run, options.seed, expected, runs, begun=len(runs)
    )
    with ThreadPoolExecutor(options.lanes) as lanes:
        list(lanes.map(campaign.lane, range(options.lanes)))
    return summarise(campaign.runs, folder)


def summarise(runs: list[Row], folder: Path) -> int:
    """Print what was tried and lost; returns the exit code."""
    for place, times in sorted(sum((Counter(run["places"]) for run in runs), Counter[str]()).items()):
        print(f"{times:5d} {place}")
    nothing = all(run["nothing_lost"] for run in runs)
    kills = sum(run["kills"] for run in runs)
    print(
        f"{kills} kills in {len(runs)} runs; lost: {'nothing' if nothing else f'something, see {folder}/kills.jsonl'}"
    )
    return 0 if nothing else 1


if __name__ == "__main__":
    sys.exit(main())
