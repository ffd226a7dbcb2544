"""Reward-model scoring beside a plain loop over padded batches of 16.

    python -m tests.benchmarks.scoring [--quick] [--json FILE] [--record]

A sequence classifier with random weights scores K responses to each of many generated prompts. The loop takes the
conversations as they come, a prompt's one after the other. Each run is a process of its own, the sides take turns, and
medians are shown.
"""

import argparse
import statistics
import sys
from typing import Any

from tests.benchmarks.isolated import measure_apart
from tests.benchmarks.llama_shapes import SHAPES
from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, table

# Mean tokens of prompt and response, and responses a prompt.
CELLS = ((126, 46, 2), (126, 46, 8), (32, 128, 4), (512, 128, 4), (126, 256, 16))
TOKENS, QUICK_TOKENS = 100_000, 8_000
Facts = dict[str, Any]


def measure(given: argparse.Namespace) -> Facts:
    """Both sides for each cell."""
    repeats, tokens = (1, QUICK_TOKENS) if given.quick else (3, TOKENS)
    found = [_measure_cell(given, cell, max(4, tokens // (cell[2] * (cell[0] + cell[1]))), repeats) for cell in CELLS]
    asked = [bar(f"{facts['name']}: speed / loop", facts.get("ratio"), 4.0, at_least=True) for facts in found]
    return {"circumstances": circumstances("tests.benchmarks.scoring"), "cells": found, "bars": asked}


def _measure_cell(given: argparse.Namespace, cell: tuple[int, int, int], prompts: int, repeats: int) -> Facts:
    prompt, response, responses = cell
    runs: dict[str, list[Facts]] = {"ours": [], "loop": []}
    job = {"shape": given.shape, "prompts": prompts, "prompt": prompt, "response": response, "responses": responses}
    for repeat in range(repeats):
        for side, of_side in runs.items():
            facts = measure_apart(
                "tests.benchmarks.reward_scores", {**job, "side": side, "seed": repeat}, ours=side == "ours"
            )
            if "failed" in facts:
                sys.exit(f"{side}: {facts['failed']}")
            of_side.append(facts)
    # Both saw the same conversations in the same order.
    pairs = [
        (ours, loop)
        for mine, theirs in zip(runs["ours"], runs["loop"], strict=True)
        for ours, loop in zip(mine.pop("scores"), theirs.pop("scores"), strict=True)
    ]
    name = f"{prompt}+{responses}×{response}"
    found: Facts = {"name": name, "conversations": responses * prompts, "runs": runs}
    for side, of_side in runs.items():
        found[side] = {name: statistics.median(run[name] for run in of_side) for name in of_side[0]}
    found["largest_difference"] = max(abs(ours - loop) for ours, loop in pairs)
    found["ratio"] = found["ours"]["per_second"] / found["loop"]["per_second"]
    found["memory_ratio"] = found["ours"]["memory_mib"] / found["loop"]["memory_mib"]
    return found


def tables(found: Facts) -> str:
    """Markdown."""
    header = ["mean tokens", "conversations", "ours /s", "loop /s", "ours/loop", "ours MiB", "loop MiB", "difference"]
    rows = []
    for cell in found["cells"]:
        sides = [cell["ours"], cell["loop"]]
        row = [cell["name"], str(cell["conversations"]), *(f"{side['per_second']:.1f}" for side in sides)]
        row += [f"{cell['ratio']:.2f}", *(f"{side['memory_mib']:.0f}" for side in sides)]
        rows.append([*row, f"{cell['largest_difference']:.1e}"])
    return f"{table(header, rows)}\n\n{bars_table(found['bars'])}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="reward-model scoring beside a padded loop")
    add_options(parser)
    parser.add_argument("--shape", choices=SHAPES, default="13.8M")
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
