"""``python -m tests.faults.campaign``: the quickstart is killed again and again, and compared with one left alone."""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from flows.environment import prepare_environment
from tests.faults.fire import ROOT, Fire, draw_kill, prefloop_run, results

# Neither changes a result: training goes on inside a round.
OFTEN = ["warm_start.checkpoint_every=25", "training.checkpoint_every=5"]
PATIENCE = 120.0


def undisturbed(folder: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Results of the job without a kill, made once a folder."""
    run = folder / "undisturbed"
    if not (run / "report.html").exists():
        Fire(run, prefloop_run(arguments, run), environment).finish()
    return results(run)


def under_fire(
    run: Path, arguments: list[str], environment: dict[str, str], expected: dict[str, str], seed: int, kills: int
) -> Fire:
    """One run that is killed ``kills`` times, unless it is over before, and compared with ``expected``."""
    lots = random.Random(seed)
    fire = Fire(run, prefloop_run(arguments, run), environment)
    while len(fire.done) < kills:
        kill = draw_kill(lots, longest=25.0)
        if not fire.shoot(kill, PATIENCE):
            break
        print(f"  {run.name}: kill {len(fire.done)}: {fire.done[-1]}", flush=True)
    fire.finish()
    fire.compare(expected)
    return fire


def main() -> int:
    """Kill until the number is reached; every run's losses are a line of ``FOLDER/kills.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="altogether")
    parser.add_argument("--kills-a-run", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count on from it")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    options = parser.parse_args()
    prepare_environment()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    arguments = [str(ROOT / "configs" / "quickstart.yaml"), *OFTEN]
    expected = undisturbed(folder, arguments, environment)
    total, places, nothing_lost, number = 0, Counter[str](), True, 0
    while total < options.kills:
        seed, wanted = options.seed + number, min(options.kills_a_run, options.kills - total)
        began = time.monotonic()
        fire = under_fire(folder / f"killed_{seed:03d}", arguments, environment, expected, seed, wanted)
        number, total = number + 1, total + len(fire.done)
        places.update(f"{kill.role} at {kill.point}" for kill in fire.done)
        nothing_lost &= fire.lost.nothing
        line = {"seed": seed, "kills": len(fire.done), "starts": fire.starts, "lost": asdict(fire.lost)}
        line |= {"sampled_again_of_shards_in_flight": fire.repeated(), "seconds": round(time.monotonic() - began)}
        line |= {"endings": {str(code): times for code, times in fire.endings.items()}}
        with (folder / "kills.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{total} of {options.kills} kills: {json.dumps(line)}", flush=True)
    for place, times in sorted(places.items()):
        print(f"{times:5d} {place}")
    print(f"{total} kills in {number} runs; lost: {'nothing' if nothing_lost else 'SOMETHING, see ' + str(folder)}")
    return 0 if nothing_lost else 1


if __name__ == "__main__":
    sys.exit(main())
