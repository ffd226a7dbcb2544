"""Training steps on image preferences against the logic of diffusers' script for Diffusion-DPO.

    python -m tests.benchmarks.images [--quick] [--record]

Same model, pairs and number of steps, each side in a process of its own, in turn. Bars: at least 1.8 times as fast a
step and at most 0.7 of the peak memory, on the script's own kind of model: captions, an autoencoder, an adapter.
"""

import argparse
from statistics import median
from typing import Any

from tests.benchmarks.isolated import measure_apart
from tests.benchmarks.recorded_runs import add_options, circumstances, keep, table

CHILD = "tests.benchmarks.diffusion_steps"
NAMES = {"text": "captions, VAE, adapter", "pixel": "classes, pixels, all weights"}
SPEED, MEMORY = 1.8, 0.7


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    given = parser.parse_args()
    steps, turns, pairs = (8, 1, 8) if given.quick else (16, 3, 32)
    found: dict[str, Any] = {"circumstances": circumstances("tests.benchmarks.images")}
    for cell in NAMES:
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "script": []}
        for _ in range(turns):
            for side, facts in runs.items():
                facts.append(measure_apart(CHILD, {"cell": cell, "side": side, "steps": steps, "pairs": pairs}))
                if "failed" in facts[-1]:
                    raise SystemExit(f"{cell}, {side}: {facts[-1]['failed']}")
        found[cell] = {
            side: {name: median(fact[name] for fact in facts) for name in facts[0]} for side, facts in runs.items()
        }
    keep(found, tables(found, pairs), given)


def tables(found: dict[str, Any], pairs: int) -> str:
    """Both tables in Markdown."""
    rows, bars = [], []
    for cell, name in NAMES.items():
        ours, script = found[cell]["ours"], found[cell]["script"]
        speed, memory = script["step"] / ours["step"], ours["mib"] / script["mib"]
        whole = (ours["encoding"] + ours["reference"]) / ours["steps"] + ours["step"]
        rows.append(
            [
                name,
                f"{1000 * ours['step']:.1f}",
                f"{1000 * script['step']:.1f}",
                f"{speed:.2f}",
                f"{script['step'] / whole:.2f}",
                f"{ours['mib']:.0f}",
                f"{script['mib']:.0f}",
                f"{memory:.2f}",
            ]
        )
        if cell == "text":
            bars.append(["speed / script", f"≥ {SPEED}", f"{speed:.2f}", "yes" if speed >= SPEED else "no"])
            bars.append(["memory / script's", f"≤ {MEMORY}", f"{memory:.2f}", "yes" if memory <= MEMORY else "no"])
    header = ["model", "ours ms", "script ms", "ratio", "with preparation", "ours MiB", "script MiB", "share"]
    note = (
        f"CPU milliseconds of one thread; {pairs} pairs a step, ours in passes of half of them. with preparation: ours "
        "with encoding every image and caption once and scoring the reference, all for one epoch; sampled images have "
        "their latents already. MiB: peak of the process that trains, with weights. The pixel model has no bar: a step "
        "of the script is four passes forward (the policy's, its gradient at the price of two, the reference's), ours "
        "is three of these, so at most 4/3 can be gained there."
    )
    return "\n\n".join([table(header, rows), table(["bar", "asked for", "measured", "met"], bars), note])


if __name__ == "__main__":
    main()
