"""How threads should wait for each other: training steps alone, and beside a program that keeps one core busy.

``python -m tests.benchmarks.waiting --record``

Each measurement is a process of its own that trains a model on pairs; ways of waiting take turns, so a change of the
machine's speed meets all of them. ``chosen`` is what prefloop's own processes get, which depends on the free cores.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from flows.workers.pool.waiting import SLEEPING, SPINNING, thread_variables
from tests.benchmarks.isolated import Facts, measure_apart
from tests.benchmarks.recorded_runs import add_options, circumstances, keep, save, table

WAYS: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "sleep": lambda: SLEEPING,
    "spin": lambda: SPINNING,
    "chosen": lambda: thread_variables({}),
}
# Mean tokens of prompt and response, pairs, pairs a step.
JOBS: Mapping[str, tuple[float, float, int, int]] = {"tiny": (40.0, 24.0, 512, 32), "13.8M": (64.0, 32.0, 64, 32)}
REPEATS = 3


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Inside the block, ``count`` programs keep a core busy each."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(shape: str, way: str, busy: int, repeat: int) -> float | None:
    """Pairs a second; None if it failed."""
    prompt, response, pairs, batch = JOBS[shape]
    job: Facts = {"side": "ours", "group": "growth", "shape": shape, "dtype": "float32", "ours": {}, "seed": repeat}
    job |= {"prompt": prompt, "response": response, "pairs": pairs, "batch_size": batch}
    with neighbours(busy):
        facts = measure_apart("tests.benchmarks.preference_steps", job, waiting=WAYS[way]())
    return facts.get("pairs_per_second")


def tables(found: Facts) -> str:
    """Markdown: medians of pairs a second."""
    rows = []
    for shape, busy in itertools.product(JOBS, (0, 1)):
        runs = [one for one in found["runs"] if one["shape"] == shape and one["busy"] == busy]
        medians = []
        for way in WAYS:
            rates = [one["rate"] for one in runs if one["way"] == way and one["rate"] is not None]
            medians.append(f"{statistics.median(rates):.1f}" if rates else "—")
        rows.append([f"{shape}, {'one busy neighbour' if busy else 'alone'}", *medians])
    return table(["pairs a second", *WAYS], rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    given = parser.parse_args()
    found: Facts = {"circumstances": circumstances("tests.benchmarks.waiting"), "runs": []}
    for repeat in range(1 if given.quick else REPEATS):
        for shape, busy, way in itertools.product(("tiny",) if given.quick else JOBS, (0, 1), WAYS):
            rate = measure(shape, way, busy, repeat)
            found["runs"].append({"shape": shape, "busy": busy, "way": way, "rate": rate})
            save(found, given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
