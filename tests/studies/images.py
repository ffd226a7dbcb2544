"""Do three online rounds teach a diffusion model which dot was asked for, and do the alarms call a collapse?

The run of configs/images.yaml on seeds that chose no setting, and its controls: labels that know nothing, fine-tuning
on the winners alone, the settings of a known collapse, and a reward of blueness on a model without conditions. All of
them go through the stages of a run, without Prefect.

    python -m tests.studies.images [--seeds 1 2 3] [--arms ...] [--folder DIR] [--record]

Arms that a folder holds are not run again, so several processes can share one, and a last one makes the record.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flows.stages.context import Context
from flows.stages.images.evaluation import dot_shares
from pipeline.storage.atomic import write_json
from pipeline.storage.run_folder import RunFolder
from pipeline.training.watch.alarms import ALARMS_FILE
from tests.benchmarks.recorded_runs import circumstances, section, table
from tests.studies.study_report import RESULTS
from tests.support.image_run import run_images
from tests.support.places import ROOT

ROUNDS = 3
HERE = ROOT / "tests" / "studies"
# The stages of round 0 that arms of one seed share.
SHARED = ("data", "policy", "evaluation_samples")
RIGHT, CLEAN, APART = "right", "clean", "distance_within"
ARMS: Mapping[str, Sequence[str]] = {
    "dpo": (),
    "labels that know nothing": ("scorer.kind=function", f"scorer.file={HERE / 'image_rewards' / 'no_label.py'}"),
    # A likelihood is a mean over draws, of which there is one.
    "winners alone": ("loss.preset=sft", "training.score.draws=1"),
    "collapse": (
        "prompts_per_round=94",
        "sampling.n=4",
        "training.reference=previous",
        "loss.beta=0.05",
        "training.learning_rate=2e-4",
        "training.schedule=constant",
        "training.score.draws=1",
        "training.score.levels=[0,1]",
        "training.max_steps=80",
        "training.epochs=27",
    ),
    "blueness": (
        "prompts.kind=conditions",
        "prompts.of=[a dot]",
        "prompts.repeats=768",
        "scorer.kind=function",
        f"scorer.file={HERE / 'image_rewards' / 'blueness.py'}",
    ),
}


def run_arm(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Run one arm, or go on with it; return what the rounds came to."""
    told = folder / f"{arm.replace(' ', '_')}_{seed}.json"
    if not told.is_file():
        write_json(told, _run(folder, arm, seed))
    found: dict[str, Any] = json.loads(told.read_text())
    return found


def _run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    root, start = folder / f"{arm.replace(' ', '_')}_{seed}", folder / f"dpo_{seed}"
    settings = [f"seed={seed}", "gate=null", *ARMS[arm]]
    began, used = time.time(), sum(os.times()[:4])
    if arm not in ("dpo", "blueness") and (start / "round_000" / "evaluation").is_dir() and not root.exists():
        run_images(root, *settings, rounds=-1, size=())
        for name in SHARED:
            shutil.copytree(start / "round_000" / name, root / "round_000" / name)
    run = run_images(root, *settings, rounds=ROUNDS, size=())
    shares = [_measured(run, number, dots=arm != "blueness") for number in range(ROUNDS + 1)]
    called = [alarms_of(run, number) for number in range(1, ROUNDS + 1)]
    cpu = sum(os.times()[:4]) - used
    return {"arm": arm, "seed": seed, "rounds": shares, "alarms": called, "seconds": time.time() - began, "cpu": cpu}


def _measured(run: RunFolder, number: int, *, dots: bool) -> dict[str, Any]:
    told = json.loads((run.stage(number, "evaluation").folder / "metrics.json").read_text())
    kept = {name: told[name] for name in ("reward", APART, "image_kl_to_start")}
    return kept | (dot_shares(Context(run, run.config()), number) if dots else {})


def alarms_of(run: RunFolder, number: int) -> list[str]:
    """The rules that raised an alarm in a round."""
    file = run.stage(number, "policy").folder / ALARMS_FILE
    return [alarm["rule"] for alarm in json.loads(file.read_text())["alarms"]] if file.is_file() else []


def verdicts(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Say for each arm and seed whether it is within its bar."""
    lines = []
    for one in found:
        first, last = one["rounds"][0], one["rounds"][-1]
        match one["arm"]:
            case "dpo":
                risen, clean = last[RIGHT] - first[RIGHT], last[CLEAN] - first[CLEAN]
                apart = last[APART] / first[APART]
                said = f"right {risen:+.3f} (bar +0.15), clean {clean:+.3f} (0), distance {apart:.0%} (85 %)"
                held = risen >= 0.15 and clean >= 0 and apart >= 0.85
            case "labels that know nothing":
                moved = last[RIGHT] - first[RIGHT]
                said, held = f"right {moved:+.3f} (bar within 0.06)", abs(moved) <= 0.06
            case "collapse":
                said, held = f"alarms of rounds 1 and 2: {one['alarms'][:2]}", any(one["alarms"][:2])
            case "blueness":
                rewards = [number["reward"] for number in one["rounds"]]
                surrogate = [number["image_kl_to_start"] for number in one["rounds"]]
                said = f"reward {_listed(rewards)}; surrogate of KL {_listed(surrogate)} nats an image"
                held = all(after > before for before, after in pairwise(rewards))
            case _:
                said, held = f"right {last[RIGHT] - first[RIGHT]:+.3f} (control)", True
        lines.append([one["arm"], str(one["seed"]), said, "yes" if held else "NO", f"{one['cpu']:.0f}"])
    return lines


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.2f}" for number in numbers)


def _rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    named = (RIGHT, "colour_right", "half_right", CLEAN, APART, "reward", "image_kl_to_start")
    rows = []
    for one in found:
        for number, values in enumerate(one["rounds"]):
            told = [f"{values[name]:.3f}" if name in values else "–" for name in named]
            rows.append([one["arm"], str(one["seed"]), str(number), *told])
    return rows


def main() -> None:
    """Run the arms, print two tables, and record them if asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="images-"))
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for arm in given.arms:
        for seed in given.seeds if arm == "dpo" else given.seeds[:1]:
            found.append(run_arm(folder, arm, seed))
            print(table(["arm", "seed", "what", "within", "CPU s"], verdicts(found[-1:])), flush=True)
    heads = ["arm", "seed", "round", "right", "colour", "half", "clean", "distance", "reward", "surrogate of KL"]
    tables = f"{table(heads, _rows(found))}\n\n{table(['arm', 'seed', 'what', 'within', 'CPU s'], verdicts(found))}"
    print(tables)
    if given.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(section(circumstances("tests.studies.images"), tables))


if __name__ == "__main__":
    main()
