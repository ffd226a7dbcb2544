"""What a discriminator that is trained beside the policy is worth (D2PO, arXiv:2405.01511), beside its controls.

``python -m tests.studies.discriminator [SETTINGS]`` makes one small policy from nothing and runs every arm from it with
several seeds: configs/discriminator.yaml under SETTINGS, such as ``rounds=4``. A run that was stopped goes on.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from flows.workers.local import Workers
from pipeline.config.files import load_config
from reward_models.training.train import quieten
from tests.benchmarks.recorded_runs import add_options, circumstances, keep, table
from tests.studies.discriminator_arms import ARMS, CONFIG, ONLINE, Point, make_start, run_arm
from tests.studies.discriminator_plot import draw

RESULTS = Path(__file__).with_name("RESULTS.md")
# Student's t at 97.5 %, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
Arm = dict[int, list[Point]]


def main() -> None:
    """Run, tabulate, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("settings", nargs="*", help="a.b=value, of the config")
    parser.add_argument("--out", type=Path, default=Path("runs/discriminator-study"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="draw the arms in this file: .svg, .png, .pdf")
    given = parser.parse_args()
    quick = ["rounds=2", "warm_start.max_steps=60", "prompts_per_round=96", "held_out.prompts=32"]
    found = run_study([*(quick if given.quick else []), *given.settings], given.out.resolve(), given.seeds)
    plain = {arm: {seed: [asdict(p) for p in points] for seed, points in runs.items()} for arm, runs in found.items()}
    keep({"circumstances": circumstances("tests.studies.discriminator"), "arms": plain}, tables(found), given, RESULTS)
    if given.plot is not None:
        given.plot.write_bytes(draw(found, given.plot.suffix.lstrip(".")))


def run_study(settings: Sequence[str], out: Path, seeds: Sequence[int]) -> dict[str, Arm]:
    """The points of each arm and seed."""
    quieten()
    found: dict[str, Arm] = {arm: {} for arm in ARMS}
    with Workers(out, load_config([CONFIG], settings)) as workers:
        make_start(settings, out, workers, _say)
        for seed in seeds:
            for arm in ARMS:
                found[arm][seed] = run_arm(arm, seed, settings, out, workers, _say)
                _say(f"{arm}, seed {seed}: " + json.dumps([round(point.reward, 2) for point in found[arm][seed]]))
    return found


def tables(found: Mapping[str, Arm]) -> str:
    """Markdown: the arms at the end, and the discriminator beside two of them, seed by seed."""
    rows = []
    for arm, runs in found.items():
        last = [points[-1] for points in runs.values()]
        rows.append(
            [
                arm,
                f"{statistics.fmean(point.bought for point in last):.0f}",
                f"{statistics.fmean(sum(point.steps for point in points) for points in runs.values()):.0f}",
                _spread([point.reward for point in last]),
                _spread([late_accuracy(points) for points in runs.values()]),
                f"{statistics.fmean(point.kl_to_start for point in last):.2f}",
                f"{statistics.fmean(point.tokens for point in last):.1f}",
            ]
        )
    header = ["arm", "gold bought", "steps", "gold reward", "accuracy of labels", "KL nats/token", "tokens"]
    start = statistics.fmean(points[0].reward for points in found[ONLINE].values())
    differences = [
        [f"discriminator − {arm}", _difference(found, arm, _last_reward), _difference(found, arm, late_accuracy)]
        for arm in found
        if arm != ONLINE
    ]
    return "\n\n".join(
        [
            table(header, rows),
            table(["difference, seed by seed", "gold reward", "accuracy"], differences),
            "gold reward: of sampled responses to held-out prompts after the last round; that of the start policy is "
            f"{start:.2f}. accuracy: of the labels of responses that no gold was bought for, over a prompt's pairs, "
            "mean of the later half of the rounds. ±: 95 % interval of the mean over "
            f"{len(found[ONLINE])} seeds (Student's t).",
        ]
    )


def late_accuracy(points: Sequence[Point]) -> float | None:
    """Mean over the later half of the rounds, where the policy has moved; None where nobody labelled."""
    found = [point.accuracy for point in points[1 + len(points) // 2 :] if point.accuracy is not None]
    return statistics.fmean(found) if found else None


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval; None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, STUDENT.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))


def _difference(found: Mapping[str, Arm], arm: str, measure: Callable[[Sequence[Point]], float | None]) -> str:
    """The discriminator's less that of ``arm``, which had the same seeds."""
    both = [(measure(found[ONLINE][seed]), measure(points)) for seed, points in found[arm].items()]
    return _spread([ours - theirs for ours, theirs in both if ours is not None and theirs is not None], "+.2f")


def _spread(values: Sequence[float | None], form: str = ".2f") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "—"
    mean, half = interval(known)
    return f"{mean:{form}}" + ("" if half is None else f" ± {half:.2f}")


def _last_reward(points: Sequence[Point]) -> float:
    return points[-1].reward


def _say(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
