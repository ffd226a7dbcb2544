"""Training steps beside TRL's DPOTrainer: pairs a second, peak memory, share of the machine's matrix rate.

    python -m tests.benchmarks.train [--quick] [--json FILE] [--record]

Both sides train the same random Llama with DPO on the same generated pairs, with reference log-probabilities given to
both, the same optimiser, dtype, global batch and number of steps. Only steps are timed, after a short warming run of
the same side; what either does once per training, such as the self-tests of our first step, is in ``whole_seconds`` of
the JSON. Every run is a process of its own, the sides take turns, and medians are shown. The grid is measured in the
first of ``--dtypes``. On a CUDA machine both sides use it (``--shape 0.5B``).
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, get_args

from tests.benchmarks.llama_shapes import SHAPES
from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, save, table
from tests.benchmarks.training_cells import LENGTH_OF_GROWTH, Cell, Dtype, cells, measure_cell, measure_growth

GROUPS = ("dialogue", "grid", "vocabulary", "growth")
FEW, QUICK_MANY, MANY = 1_000, 5_000, 100_000
GROWTH_BATCH = 64
# Beside steps: from opening the parquet files to the first step, and after the last one.
GROWTH_COLUMNS = {
    "pairs/s in steps": ("pairs_per_second", ".0f"),
    "s beside steps": ("opening_seconds", ".2f"),
    "MiB": ("memory_mib", ".1f"),
}
Facts = dict[str, Any]
# Times the other side's best speed.
SPEEDS = {("float32", "cpu"): 3.0, ("bfloat16", "cpu"): 4.5, ("float32", "cuda"): 3.0, ("bfloat16", "cuda"): 3.5}
# Share of the matrix rate that is asked for, on CPU and on CUDA.
SHARES = {("float32", "cpu"): 0.7, ("bfloat16", "cpu"): 0.45, ("bfloat16", "cuda"): 0.5}


def measure(given: argparse.Namespace) -> Facts:
    """All cells that were asked for."""
    ours = {} if given.micro_batch_tokens is None else {"micro_batch_tokens": given.micro_batch_tokens}
    repeats = given.repeats or (1 if given.quick else 3)
    every = cells(given.shape, given.dtypes, ours, quick=given.quick, scale=given.scale)
    found: Facts = {"circumstances": circumstances("tests.benchmarks.train"), "cells": []}
    for cell in every:
        if cell.group in given.only:
            found["cells"].append(measure_cell(cell, repeats, given.limit))
            save(found, given)
    if "growth" in given.only:
        many = given.many or (QUICK_MANY if given.quick else MANY)
        cell = Cell("growth", "tiny", "float32", *LENGTH_OF_GROWTH, FEW, GROWTH_BATCH, (), ours)
        found["growth"] = measure_growth(cell, (FEW, many), repeats, given.limit)
    found["bars"] = bars(found)
    return found


def bars(found: Facts) -> list[Facts]:
    """What is asked for beside what was measured; None where it was not."""
    of = {group: [cell for cell in found["cells"] if cell["group"] == group] for group in GROUPS}
    grid, wide = of["grid"], of["vocabulary"]
    asked = []
    for cell in of["dialogue"]:
        dtype, device = cell["dtype"], "cuda" if _on_cuda(cell) else "cpu"
        speed = SPEEDS[dtype, device]
        asked.append(bar(f"{dtype}: speed / best micro-batch", cell.get("ratio_best"), speed, at_least=True))
        asked.append(bar(f"{dtype}: speed / micro-batch 8", cell.get("ratio_usual"), 6.0, at_least=True))
        if (dtype, device) in SHARES:
            share = cell["ours"].get("share")
            asked.append(bar(f"{dtype}: share of matrix rate", share, SHARES[dtype, device], at_least=True))
    ratios, memory = _values(grid, "ratio_best"), _values(grid, "memory_ratio_best")
    asked.append(bar("grid: worst speed / best micro-batch", min(ratios, default=None), 1.3, at_least=True))
    mean = statistics.geometric_mean(ratios) if ratios else None
    asked.append(bar("grid: geometric mean of these", mean, 2.5, at_least=True))
    asked.append(bar("grid: largest memory / best micro-batch's", max(memory, default=None), 0.5, at_least=False))
    narrow = max(_values(wide, "memory_ratio_best"), default=None)
    asked.append(bar("vocabulary 128k: memory / best micro-batch's", narrow, 0.25, at_least=False))
    told = [cell["ours"]["plan_ratio"] for cell in found["cells"] if "plan_ratio" in cell["ours"]]
    asked.append(bar("plan: lowest estimate / measured memory", min(told, default=None), 0.85, at_least=True))
    asked.append(bar("plan: highest estimate / measured memory", max(told, default=None), 1.15, at_least=False))
    growth = found.get("growth", {})
    asked.append(bar("many pairs: time a pair / with few", growth.get("time_ratio"), 1.05, at_least=False))
    # What 5 MiB, the noise of resident memory, are among 100,000 pairs; the tokens alone of a pair are more.
    asked.append(bar("many pairs: KiB a further pair", growth.get("kib_per_pair"), 0.05, at_least=False))
    return asked


def tables(found: Facts) -> str:
    """Markdown: the cells, growth, the bars, and how the share is counted."""
    header = ["cell", "pairs", "ours /s", "best /s", "(batch)", "8 /s", "ours/best", "ours/8"]
    header += ["ours MiB", "best MiB", "8 MiB", "plan MiB", "plan/ours", "share"]
    parts = [table(header, [_row(cell) for cell in found["cells"]])] if found["cells"] else []
    if "growth" in found:
        counts = found["growth"]["counts"]
        rows = [[n, *(_shown(f, *of) for of in GROWTH_COLUMNS.values())] for n, f in counts.items()]
        parts.append(table(["pairs, tiny model", *GROWTH_COLUMNS], rows))
    parts.append(bars_table(found["bars"]))
    parts.append(
        "best, 8: TRL's DPOTrainer at its fastest micro-batch and at 8. Timed are optimiser steps alone, on both sides "
        "after a warming run; our first step's self-tests, once per training, are in the JSON's whole_seconds. MiB: "
        "peak of all of it above the process after imports and model load. plan: what prefloop plan says of that. "
        "share: unavoidable operations a second over the process's own rate of square matrix products; counted are 6 a "
        "linear-layer parameter and distinct token (prompts once), the head at response tokens alone, and "
        "12 · hidden · layers a visible query-key pair."
    )
    return "\n\n".join(parts)


def _row(cell: Facts) -> list[str]:
    ours, best = cell["ours"], cell["theirs"].get(str(cell["best"]), {})
    usual = cell["theirs"].get("8", {})
    row = [cell["name"], str(cell["pairs"]), _shown(ours, "pairs_per_second", ".2f")]
    row += [_shown(best, "pairs_per_second", ".2f"), str(cell["best"] or "—"), _shown(usual, "pairs_per_second", ".2f")]
    row += [_shown(cell, "ratio_best", ".2f"), _shown(cell, "ratio_usual", ".2f")]
    row += [_shown(side, "memory_mib", ".0f") for side in (ours, best, usual)]
    row += [_shown(ours, "planned_mib", ".0f"), _shown(ours, "plan_ratio", ".2f")]
    return [*row, _shown(ours, "share", ".0%")]


def _shown(facts: Facts, name: str, form: str) -> str:
    if "failed" in facts:
        return "failed"
    return format(facts[name], form) if facts.get(name) is not None else "—"


def _values(of_cells: Sequence[Facts], name: str) -> list[float]:
    return [cell[name] for cell in of_cells if name in cell]


def _on_cuda(cell: Facts) -> bool:
    return any(run["memory_source"] == "cuda" for run in cell["ours"].get("runs", []))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="training steps beside TRL's DPOTrainer")
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=get_args(Dtype), default=get_args(Dtype), help="default: both")
    parser.add_argument("--shape", choices=SHAPES, default="13.8M", help="of dialogue and grid cells")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many pairs, for faster machines")
    parser.add_argument("--repeats", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--many", type=int, help=f"pairs of the growth cell: default {MANY}, with --quick {QUICK_MANY}")
    parser.add_argument("--micro-batch-tokens", type=int, help="our side's; default: the trainer's")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one run may take")
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
