"""A whole round of the quickstart's model: sampling beside bare vLLM, what is neither sampling, labelling nor training,
and prompts to updated policy beside TRL's OnlineDPOTrainer.

    python -m tests.benchmarks.round [--quick] [--only GROUP...] [--json FILE] [--record]

Runs of ``configs/quickstart.yaml`` with a short warm start: ``sampling`` with 2,000 prompts and 4 samples each,
``engines`` the same with one engine on all cores and with two engines that share them,
``prompts`` with 2 samples a prompt, which is what TRL's trainer draws, and ``uneven`` the same for a Llama of 61M
parameters with answers of up to 256 tokens. The engines' start is not counted on any side: of the runs only the rounds
after the first, of the others only what comes after everything is set up.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.isolated import measure_apart
from tests.benchmarks.llama_shapes import SHAPES
from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, table
from tests.benchmarks.timed_rounds import round_seconds, run_config, run_quickstart
from tests.benchmarks.uneven_llama import save_uneven_llama

PROMPTS, QUICK_PROMPTS = 2000, 192
# Held out of the prompts, for an evaluation that is as small as it can be.
HELD_OUT = 32
SAMPLES, OF_TRL = 4, 2
# The gate measures, and lets every round go on: a model that is hardly warm may well break its rules.
WARM = ("warm_start.epochs=1", "gate.min_prompts=100000")
# A model and answers with which batching counts; activations of more pairs at once than a micro-batch do not fit.
UNEVEN, UNEVEN_PROMPTS, UNEVEN_TOKENS, MICRO_BATCH = "61M", 96, 256, 8
GROUPS = ("sampling", "engines", "prompts", "uneven")
Facts = dict[str, Any]


def measure(given: argparse.Namespace) -> Facts:
    """The runs that were asked for, and what stands beside each."""
    prompts, repeats = given.prompts or (QUICK_PROMPTS if given.quick else PROMPTS), 1 if given.quick else 3
    found: Facts = {"circumstances": circumstances("tests.benchmarks.round")}
    with tempfile.TemporaryDirectory(prefix="round_") as name:
        folder = Path(name)
        if "sampling" in given.only:
            many = _run(folder / "many", prompts, SAMPLES, repeats)
            bare = [_beside(many, "tests.benchmarks.bare_generation", given.limit) for _ in range(repeats)]
            found["rounds"] = many["rounds"]
            found["sampling"] = {"ours": _middle(many["rounds"], "tokens_per_second")}
            for way in ("same_settings", "plain"):
                found["sampling"][way] = _middle([run[way] for run in bare if way in run], "tokens_per_second")
            found["bare_runs"] = bare
        if "engines" in given.only:
            found["engines"] = {
                name: _with_engines(folder, n, prompts, repeats) for name, n in (("ours", 2), ("one", 1))
            }
        if "prompts" in given.only:
            few = _run(folder / "few", prompts, OF_TRL, repeats)
            found["rounds_of_two"] = few["rounds"]
            found["prompts"] = _beside_trl(found, "online_runs", few, given, 1 if given.quick else 2)
        if "uneven" in given.only:
            uneven = _run_uneven(folder, 32 if given.quick else UNEVEN_PROMPTS)
            found["rounds_uneven"] = uneven["rounds"]
            found["uneven"] = _beside_trl(found, "uneven_runs", uneven, given, 1, MICRO_BATCH)
    found["bars"] = _bars(found)
    return found


def _beside_trl(
    found: Facts, name: str, run: Facts, given: argparse.Namespace, times: int, micro_batch: int | None = None
) -> Facts:
    """Prompts a second of both sides."""
    module, more = "tests.benchmarks.trl_online", {"micro_batch": micro_batch}
    found[name] = [_beside(run, module, given.limit, **more) for _ in range(times)]
    return {"ours": _middle(run["rounds"], "prompts_per_second"), "trl": _middle(found[name], "prompts_per_second")}


def _run(folder: Path, prompts: int, samples: int, rounds: int, further: Sequence[str] = WARM) -> Facts:
    settings = [f"prompts.prompts={prompts + HELD_OUT}", f"held_out.prompts={HELD_OUT}", *further]
    settings += [f"sampling.n={samples}", f"rounds={rounds + 1}"]
    root = run_quickstart(folder, settings)
    # The first round starts the trainer's process and fills caches, as any first round does.
    timed = [round_seconds(root, number) for number in range(2, rounds + 2)]
    return {"root": root, "rounds": timed, "config": run_config(root), "samples": samples}


def _with_engines(folder: Path, count: int, prompts: int, repeats: int) -> float | None:
    """Tokens a second of a round's samples."""
    settings = [*WARM, f"sampler.engines={count}"]
    return _middle(
        _run(folder / f"engines_{count}", prompts, SAMPLES, repeats, settings)["rounds"], "tokens_per_second"
    )


def _run_uneven(folder: Path, prompts: int) -> Facts:
    """Two samples a prompt by a policy of random weights, with the tokenizer that a short run makes."""
    start = run_quickstart(folder / "start", ["prompts.prompts=64", "held_out.prompts=8", "--until", "0:policy"])
    policy = folder / "uneven_policy"
    parameters = save_uneven_llama(SHAPES[UNEVEN], start / "round_000" / "policy", policy, 4 * UNEVEN_TOKENS)
    settings = [
        f"policy={{kind: pretrained, path: {policy}}}",
        "warm_start=null",
        f"sampling.max_tokens={UNEVEN_TOKENS}",
        "gate=null",
    ]
    run = _run(folder / "uneven", prompts, OF_TRL, 1, settings)
    return {**run, "parameters": parameters}


def _beside(run: Facts, module: str, limit: float, **more: Any) -> Facts:
    """The other side, on the policy and the prompts of the run's second round."""
    root, config = run["root"], run["config"]
    job = {"policy": str(root / "round_001" / "policy"), "samples": str(root / "round_002" / "samples")}
    job |= {"n": run["samples"], "max_tokens": config["sampling"]["max_tokens"], "dtype": config["sampler"]["dtype"]}
    facts = measure_apart(module, {**job, **more, "config": config}, limit, ours=False)
    if "failed" in facts:
        print(f"{module}: {facts['failed']}", file=sys.stderr)
    return facts


def _middle(facts: list[Facts], name: str) -> float | None:
    """The median of those that have it."""
    return statistics.median(values) if (values := [f[name] for f in facts if name in f]) else None


def _ratio(found: Facts, sides: str, ours: str, theirs: str) -> float | None:
    of = found.get(sides, {})
    return of[ours] / of[theirs] if of.get(ours) and of.get(theirs) else None


def _bars(found: Facts) -> list[Facts]:
    seeded, plain = (_ratio(found, "sampling", "ours", way) for way in ("same_settings", "plain"))
    online, uneven = (_ratio(found, sides, "ours", "trl") for sides in ("prompts", "uneven"))
    return [
        bar("tokens/s of sampling / bare vLLM, seeds and log-probs", seeded, 0.95, at_least=True),
        bar("tokens/s of sampling / bare vLLM, neither", plain, 0.9, at_least=True),
        bar("rest of a round's time", _middle(found.get("rounds", []), "rest_share"), 0.06, at_least=False),
        bar("quickstart: prompts/s to the new policy / OnlineDPOTrainer", online, 3.0, at_least=True),
        bar(f"{UNEVEN}: prompts/s to the new policy / OnlineDPOTrainer", uneven, 3.0, at_least=True),
    ]


def tables(found: Facts) -> str:
    """Markdown."""
    header = ["round", "prompts", "wall s", "sampling", "labelling", "training", "rest", "share of rest"]
    rows = []
    told = {"rounds": f"{SAMPLES} samples a prompt", "rounds_of_two": f"{OF_TRL} samples a prompt"}
    told["rounds_uneven"] = f"{UNEVEN}, {OF_TRL} samples a prompt"
    for name, said in told.items():
        for facts in found.get(name, []):
            numbers = [f"{facts[kind]:.1f}" for kind in ("wall", "sampling", "labelling", "training", "rest")]
            rows.append([said, str(facts["prompts"]), *numbers, f"{facts['rest_share']:.0%}"])
    seeded, plain = "bare vLLM, each sample its seed and log-probs", "bare vLLM, n samples a request, text decoded"
    lines = [("sampling", "sampling, tokens/s", seeded, "same_settings", ".0f")]
    lines += [("sampling", "sampling, tokens/s", plain, "plain", ".0f")]
    lines += [("engines", "sampling with two engines, tokens/s", "one engine on all cores", "one", ".0f")]
    lines += [("prompts", "prompts/s to the new policy", "TRL's OnlineDPOTrainer", "trl", ".1f")]
    lines += [("uneven", f"{UNEVEN}: prompts/s to the new policy", "TRL's OnlineDPOTrainer", "trl", ".2f")]
    sides = [
        [what, beside, *_pair(found[name], theirs, form)] for name, what, beside, theirs, form in lines if name in found
    ]
    parts = [
        *([table(header, rows)] if rows else []),
        table(["", "beside", "ours", "theirs"], sides),
        bars_table(found["bars"]),
    ]
    if "rounds_uneven" in found:
        (last,) = found["rounds_uneven"]
        mean = last["tokens"] / (OF_TRL * last["prompts"])
        parts.append(
            f"{UNEVEN}: random weights; answers end at random, on average after {mean:.0f} tokens, {UNEVEN_TOKENS} at "
            f"most. OnlineDPOTrainer accumulates a batch in parts of {MICRO_BATCH} prompts, whose activations fit."
        )
    return "\n\n".join(parts)


def _pair(sides: Facts, theirs: str, form: str) -> list[str]:
    return ["failed" if sides[name] is None else format(sides[name], form) for name in ("ours", theirs)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="a whole round beside bare vLLM and TRL's OnlineDPOTrainer")
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="default: all")
    parser.add_argument("--prompts", type=int, help=f"default: {PROMPTS}, with --quick {QUICK_PROMPTS}")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one child process may take")
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
