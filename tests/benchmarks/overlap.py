"""A round whose judge takes as long as sampling: one stage after the other, and both at once.

    python -m tests.benchmarks.overlap [--quick] [--json FILE] [--record]

Two runs of ``configs/quickstart.yaml`` with a judge in this process, which waits before it answers: of the second round
as long as makes labelling take the time that sampling has just taken. It is that round which counts, from the start of
its sampling to its last label. ``--quick`` samples with transformers.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, table
from tests.benchmarks.timed_rounds import run_quickstart
from tests.support.judge_server import judge_server

PROMPTS, QUICK_PROMPTS = 2000, 240
HELD_OUT, SAMPLES, CONCURRENCY, SHARDS = 16, 4, 16, 16
Facts = dict[str, Any]


class SlowJudge:
    """Waits, then gives a text's score; not before ``samples``, a stage's folder, is complete, or ``delay`` is set."""

    def __init__(self, samples: Path, questions: int) -> None:
        self.delay: float | None = None
        self._samples, self._questions = samples, questions
        self._over = threading.Event()

    def __call__(self, question: str) -> str:
        if self.delay is None and (self._samples / "manifest.json").exists():
            self.delay = _seconds(self._samples) * CONCURRENCY / self._questions
        self._over.wait(self.delay or 0.0)
        return f"Fine.\nScore: {1 + sum(map(ord, question)) % 9}"


def measure(given: argparse.Namespace) -> Facts:
    """Seconds of both stages, their sum, the larger one, and both at once."""
    prompts = QUICK_PROMPTS if given.quick else PROMPTS
    found: Facts = {"circumstances": circumstances("tests.benchmarks.overlap"), "prompts": prompts}
    with tempfile.TemporaryDirectory(prefix="overlap_") as name:
        folder = Path(name)
        judge = SlowJudge(folder / "apart" / "round_002" / "samples", prompts * SAMPLES)
        with judge_server(judge) as server:
            settings = [f"prompts.prompts={prompts + HELD_OUT}", f"held_out.prompts={HELD_OUT}", "warm_start.epochs=1"]
            settings += [f"sampling.n={SAMPLES}", "rounds=2", f"shard_size={prompts // SHARDS}", "gate=null"]
            settings += ["sampler={kind: transformers}"] if given.quick else []
            url = f"{{base_url: '{server.url}', model: judge, concurrency: {CONCURRENCY}}}"
            settings += [f"scorer={{kind: judge, mode: pointwise, server: {url}}}", "evaluation.samples=1"]
            for way, overlap in (("apart", "false"), ("at once", "true")):
                started = time.monotonic()
                root = run_quickstart(folder / way, [*settings, f"overlap={overlap}", _own_cache(folder, way)])
                found[way] = {**_stages(root), "run": time.monotonic() - started}
        found["delay"] = judge.delay
    apart, measured = found["apart"], found["at once"]["both"]
    longest = max(apart["samples"], apart["labels"])
    found |= {"sum": apart["samples"] + apart["labels"], "maximum": longest, "measured": measured}
    found["bars"] = [bar("both at once / the longer one", measured / longest, 1.25, at_least=False)]
    return found


def _own_cache(folder: Path, way: str) -> str:
    return f"labelling.cache={folder / way}.sqlite"


def _stages(root: Path) -> Facts:
    """Seconds of the second round's samples and labels, and from the start of the one to the end of the other."""
    place = root / "round_002"
    ends = {name: (place / name / "manifest.json").stat().st_mtime for name in ("samples", "labels")}
    seconds = {name: _seconds(place / name) for name in ends}
    return {**seconds, "both": ends["labels"] - (ends["samples"] - seconds["samples"])}


def _seconds(stage: Path) -> float:
    return float(json.loads((stage / "manifest.json").read_text(encoding="utf-8"))["seconds"])


def tables(found: Facts) -> str:
    """Markdown."""
    rows = [
        [way, *(f"{found[way][name]:.1f}" for name in ("samples", "labels", "both")), f"{found[way]['run']:.0f}"]
        for way in ("apart", "at once")
    ]
    stages = table(["the second round, s", "sampling", "labelling", "both", "whole run"], rows)
    whole = [["seconds", *(f"{found[name]:.1f}" for name in ("sum", "maximum", "measured"))]]
    return "\n\n".join([stages, table(["", "sum", "maximum", "measured"], whole), bars_table(found["bars"])])


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overlap", description=__doc__)
    add_options(parser)
    given = parser.parse_args()
    found = measure(given)
    keep(found, tables(found), given)


if __name__ == "__main__":
    main()
