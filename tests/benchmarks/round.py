"""A whole round of the quickstart's model: sampling beside bare vLLM, what is neither sampling, labelling nor training,
and prompts to updated policy beside TRL's OnlineDPOTrainer.

    python -m tests.benchmarks.round [--quick] [--json FILE] [--record]

Two runs of ``configs/quickstart.yaml`` with a short warm start: one with 2,000 prompts and 4 samples each, one with 2
samples a prompt, which is what TRL's trainer draws. The engines' start is not counted on any side: of the runs only the
second round, of the others only what comes after everything is set up.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.isolated import measure_apart
from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, table
from tests.benchmarks.timed_rounds import round_seconds, run_config, run_quickstart

PROMPTS, QUICK_PROMPTS = 2000, 192
# Held out of the prompts, for an evaluation that is as small as it can be.
HELD_OUT = 32
SAMPLES, OF_TRL = 4, 2
Facts = dict[str, Any]


def measure(given: argparse.Namespace) -> Facts:
    """Both runs, and what stands beside each."""
    prompts, repeats = given.prompts or (QUICK_PROMPTS if given.quick else PROMPTS), 1 if given.quick else 3
    found: Facts = {"circumstances": circumstances("tests.benchmarks.round")}
    with tempfile.TemporaryDirectory(prefix="round_") as name:
        folder = Path(name)
        many = _run(folder / "many", prompts, SAMPLES, repeats)
        bare = [_beside(many, "tests.benchmarks.bare_generation", given.limit) for _ in range(repeats)]
        rounds = many["rounds"]
        found["rounds"] = rounds
        found["sampling"] = {"ours": _middle(rounds, "tokens_per_second")}
        for way in ("same_settings", "plain"):
            found["sampling"][way] = _middle([run[way] for run in bare if way in run], "tokens_per_second")
        found["bare_runs"] = bare
        few = _run(folder / "few", prompts, OF_TRL, repeats)
        online = [_beside(few, "tests.benchmarks.trl_online", given.limit) for _ in range(1 if given.quick else 2)]
        found["rounds_of_two"], found["online_runs"] = few["rounds"], online
        found["prompts"] = {
            "ours": _middle(few["rounds"], "prompts_per_second"),
            "trl": _middle(online, "prompts_per_second"),
        }
    found["bars"] = _bars(found)
    return found


def _run(folder: Path, prompts: int, samples: int, rounds: int) -> Facts:
    settings = [f"prompts.prompts={prompts + HELD_OUT}", f"held_out.prompts={HELD_OUT}", "warm_start.epochs=1"]
    settings += [f"sampling.n={samples}", f"rounds={rounds + 1}"]
    root = run_quickstart(folder, settings)
    # The first round starts the trainer's process and fills caches, as any first round does.
    timed = [round_seconds(root, number) for number in range(2, rounds + 2)]
    return {"root": root, "rounds": timed, "config": run_config(root), "samples": samples}


def _beside(run: Facts, module: str, limit: float) -> Facts:
    """The other side, on the policy and the prompts of the run's second round."""
    root, config = run["root"], run["config"]
    job = {"policy": str(root / "round_001" / "policy"), "samples": str(root / "round_002" / "samples")}
    job |= {"n": run["samples"], "max_tokens": config["sampling"]["max_tokens"], "dtype": config["sampler"]["dtype"]}
    facts = measure_apart(module, {**job, "config": config}, limit, ours=False)
    if "failed" in facts:
        print(f"{module}: {facts['failed']}", file=sys.stderr)
    return facts


def _middle(facts: list[Facts], name: str) -> float | None:
    """The median of those that have it."""
    return statistics.median(values) if (values := [f[name] for f in facts if name in f]) else None


def _ratio(sides: Facts, ours: str, theirs: str) -> float | None:
    return sides[ours] / sides[theirs] if sides[ours] and sides[theirs] else None


def _bars(found: Facts) -> list[Facts]:
    sampling = _ratio(found["sampling"], "ours", "same_settings")
    plain = _ratio(found["sampling"], "ours", "plain")
    prompts = _ratio(found["prompts"], "ours", "trl")
    return [
        bar("tokens/s of sampling / bare vLLM, seeds and log-probs", sampling, 0.9, at_least=True),
        bar("tokens/s of sampling / bare vLLM, neither", plain, 0.9, at_least=True),
        bar("rest of a round's time", _middle(found["rounds"], "rest_share"), 0.1, at_least=False),
        bar("prompts/s to the new policy / OnlineDPOTrainer", prompts, 3.0, at_least=True),
    ]


def tables(found: Facts) -> str:
    """Markdown."""
    header = ["round", "prompts", "wall s", "sampling", "labelling", "training", "rest", "share of rest"]
    rows = []
    for samples, name in ((SAMPLES, "rounds"), (OF_TRL, "rounds_of_two")):
        for facts in found[name]:
            numbers = [f"{facts[kind]:.1f}" for kind in ("wall", "sampling", "labelling", "training", "rest")]
            rows.append([f"{samples} samples a prompt", str(facts["prompts"]), *numbers, f"{facts['rest_share']:.0%}"])
    sides = [
        [
            "sampling, tokens/s",
            "bare vLLM, each sample its seed and log-probs",
            *_pair(found["sampling"], "same_settings", ".0f"),
        ],
        [
            "sampling, tokens/s",
            "bare vLLM, n samples a request, text decoded",
            *_pair(found["sampling"], "plain", ".0f"),
        ],
        ["prompts/s to the new policy", "TRL's OnlineDPOTrainer", *_pair(found["prompts"], "trl", ".1f")],
    ]
    return "\n\n".join([table(header, rows), table(["", "beside", "ours", "theirs"], sides), bars_table(found["bars"])])


def _pair(sides: Facts, theirs: str, form: str) -> list[str]:
    return ["failed" if sides[name] is None else format(sides[name], form) for name in ("ours", theirs)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="a whole round beside bare vLLM and TRL's OnlineDPOTrainer")
    add_options(parser)
    parser.add_argument("--prompts", type=int, help=f"default: {PROMPTS}, with --quick {QUICK_PROMPTS}")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one child process may take")
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
