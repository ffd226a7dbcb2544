"""What prompts cost besides engines and models: a round's samples and labels, with an engine that answers at once.

    python -m tests.benchmarks.bookkeeping [--prompts N] [--samples N] [--tokens N] [--pieces] [--json FILE] [--record]

The stages ``samples`` and ``labels`` as a run calls them: the pool, a child process behind a socket, files, seals and
manifests; a rule labels. Counted is the processor time of this process, which is one core's, and beside it the engine's
process, and this one's memory over the course. ``--pieces`` times what the way of one response consists of.
"""

import argparse
import gc
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from flows.stages.context import Context
from flows.stages.run import COLLECT_AFTER, run_stage
from flows.workers.messages import P, Request, Sampled, Service, decode, encode
from flows.workers.pool.sampler_engine import start_child
from flows.workers.pool.sampler_pool import SamplerPool
from flows.workers.pool.seating import Seat
from flows.workers.pool.worker import Worker
from pipeline.config import ChatSettings, SamplingSettings, VllmSampler
from pipeline.config.files import load_config
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_group_file, write_groups
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Message, Prompt, Response, derive_seed
from tests.benchmarks.recorded_runs import add_options, bar, bars_table, circumstances, keep, table
from tests.support.instant_engine import LENGTH, response
from tests.support.tiny_model import save_tiny_model

PROMPTS, QUICK_PROMPTS, SAMPLES, TOKENS = 1_000_000, 20_000, 8, 8
LEAST_GROUPS, LEAST_TOKENS = 5000.0, 200_000.0
# Times that memory is looked at in each stage.
LOOKS = 8
Facts = dict[str, Any]


class InstantWorkers:
    """Stands for ``flows.workers.local.Workers``: the real pool, with an engine that answers at once."""

    def __init__(self, root: Path, tokens: int) -> None:
        self.swaps: dict[str, Any] = {}
        self._tokens = tokens
        settings = VllmSampler(max_num_seqs=256, start_timeout=600, context=32)
        self.pool = SamplerPool(settings, ChatSettings(), root / "logs" / "sampler.log", start=self._start)

    def _start(
        self,
        service: Service[P],
        init: Request,
        log: Path,
        start_timeout: float,
        seat: Seat,
        env: Mapping[str, str | None],
    ) -> Worker[P]:
        instant = Service("tests.support.instant_engine", service.progress)
        return start_child(instant, init, log, start_timeout, seat, {**env, LENGTH: str(self._tokens)})

    def sample(
        self, policy: Path, probe: Path, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        self.pool.load(str(policy), str(probe))
        return self.pool.sample(requests, settings, 256)

    def sampler_pids(self) -> list[int]:
        return self.pool.pids


class Watch:
    """Processor time of this process and of the engine's, and this one's memory, while a stage runs."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids, self._rss = pids, list[tuple[float, int]]()
        self._own = psutil.Process()
        self._over, self.done, self.total, self.engine = threading.Event(), 0, 1, 0.0

    def report(self, done: int, total: int, note: str) -> None:
        """As a stage tells of its progress."""
        self.done, self.total = done, total

    def __enter__(self) -> "Watch":
        self._note()
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.monotonic() - self._wall, time.process_time() - self._cpu
        self._over.set()
        self._thread.join()
        self._note()

    def _note(self) -> None:
        self._rss.append((self.done / max(self.total, 1), self._own.memory_info().rss))

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self._note()
            for pid in self._pids():
                times = psutil.Process(pid).cpu_times()
                self.engine = times.user + times.system

    @property
    def memory(self) -> list[int]:
        """Largest resident MiB in each part of the stage's course."""
        parts = [
            [rss for share, rss in self._rss if int(share * LOOKS) in (k, k + (k == LOOKS - 1))] for k in range(LOOKS)
        ]
        return [max(part) >> 20 for part in parts if part]


def measure(prompts: int, samples: int, tokens: int, looks: bool = True) -> Facts:
    """Both stages over so many prompts."""
    with tempfile.TemporaryDirectory(prefix="bookkeeping_") as name:
        context = _prepared(Path(name), prompts, samples)
        workers: Any = InstantWorkers(context.run.root, tokens)
        found: Facts = {"prompts": prompts, "of_each": samples, "tokens": tokens}
        with workers.pool:
            for stage in ("samples", "labels"):
                with Watch(workers.sampler_pids if stage == "samples" else list) as watch:
                    run_stage(Context(context.run, context.config, watch.report), 1, stage, workers)
                drawn = prompts * samples * tokens
                found[stage] = {"cpu": watch.cpu, "wall": watch.wall, "engine": watch.engine, "memory": watch.memory}
                found[stage] |= {"groups_per_second": prompts / watch.cpu, "tokens_per_second": drawn / watch.cpu}
                files = [*context.run.stage(1, stage).folder.iterdir()]
                found[stage] |= {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
    cpu = found["samples"]["cpu"] + found["labels"]["cpu"]
    found["both"] = {"groups_per_second": prompts / cpu, "tokens_per_second": prompts * samples * tokens / cpu}
    return found


def _prepared(folder: Path, prompts: int, samples: int) -> Context:
    """A run folder up to its first round."""
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"prompt": f"the cat {n} sat on mat {n % 97}"}) + "\n" for n in range(prompts + 4))
    file = folder / "config.yaml"
    file.write_text(
        f"name: bookkeeping\nmode: iterative\npolicy: {{path: {save_tiny_model(folder / 'model')}}}\n"
        f"prompts: {{path: {folder / 'prompts.jsonl'}}}\nheld_out: {{prompts: 4}}\n"
        f"sampling: {{n: {samples}, max_tokens: 8}}\nscorer: {{kind: length, target_words: 12}}\n"
    )
    context = Context(RunFolder(folder / "run"), load_config([file]))
    for name in ("data", "policy"):
        run_stage(context, 0, name)
    return context


def pieces(samples: int, lengths: Sequence[int] = (8, 1000)) -> list[Facts]:
    """What the way of a prompt's samples consists of: processor microseconds a group, and bytes a token."""
    return [facts for length in lengths for facts in _pieces(samples, length)]


def _pieces(samples: int, length: int) -> Iterator[Facts]:
    count = max(32, 32_000 // (length * samples))
    drawn = [tuple(response(n + k, length) for k in range(samples)) for n in range(count)]
    groups = [Group(Prompt((Message("user", f"the cat {n}"),)), (1,) * 20, own) for n, own in enumerate(drawn)]
    with tempfile.TemporaryDirectory(prefix="pieces_") as name:
        file = Path(name) / "shard.parquet"
        lines = [encode(Sampled(group.responses)) for group in groups]
        sent = sum(map(len, lines))
        steps: list[tuple[str, Callable[[], object], int | None]] = [
            ("seeds", lambda: [derive_seed(0, "samples", 1, group.prompt.id) for group in groups], 0),
            ("message, engine's side", lambda: [encode(Sampled(group.responses)) for group in groups], sent),
            ("message, driver's side", lambda: [decode(line, (Sampled,)) for line in lines], sent),
            ("parquet, written", lambda: write_groups(file, groups), None),
            ("SHA-256", lambda: hashlib.sha256(file.read_bytes()).hexdigest(), None),
            ("parquet, read", lambda: list(read_group_file(file)), None),
        ]
        for what, do, size in steps:
            start = time.process_time()
            do()
            took = max(time.process_time() - start, 1e-9)
            held = file.stat().st_size if size is None else size
            facts = {"piece": what, "tokens": length, "microseconds": took / count * 1e6}
            whole = count * samples * length
            yield {**facts, "bytes": held / whole, "tokens_per_second": whole / took}


def tables(found: Facts) -> str:
    """Markdown."""
    header = ["stage", "groups/s", "tokens/s", "engine's process s", "wall s", "files", "MB", "MiB over the course"]
    rows = [
        [
            stage,
            *(f"{found[stage][name]:,.0f}" for name in ("groups_per_second", "tokens_per_second", "engine", "wall")),
            f"{found[stage]['files']:,}",
            f"{found[stage]['bytes'] / 1e6:,.0f}",
            " ".join(map(str, found[stage]["memory"])),
        ]
        for stage in ("samples", "labels")
    ]
    rows.append(["both", *(f"{found['both'][name]:,.0f}" for name in ("groups_per_second", "tokens_per_second"))])
    rows[-1] += [""] * (len(header) - len(rows[-1]))
    told = f"{found['prompts']:,} prompts, {found['of_each']} samples of {found['tokens']} tokens each."
    shown = [told, table(header, rows)]
    if "pieces" in found:
        lines = []
        for one in found["pieces"]:
            numbers = [f"{one['microseconds']:,.0f}", f"{one['tokens_per_second']:,.0f}", f"{one['bytes']:.1f}"]
            lines.append([f"{one['piece']}, {one['tokens']} tokens", *numbers])
        shown.append(table(["of a group", "microseconds", "tokens/s", "bytes a token"], lines))
    return "\n\n".join([*shown, bars_table(found["bars"])])


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bookkeeping", description=__doc__)
    add_options(parser)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--pieces", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # As ``flows.loop.entry`` sets it for a run.
    gc.set_threshold(COLLECT_AFTER)
    found = measure(given.prompts or (QUICK_PROMPTS if given.quick else PROMPTS), given.samples, given.tokens)
    found["circumstances"] = circumstances("tests.benchmarks.bookkeeping")
    if given.pieces:
        found["pieces"] = pieces(given.samples)
    both = found["both"]
    found["bars"] = [
        bar("groups/s of a core, samples and labels", both["groups_per_second"], LEAST_GROUPS, at_least=True),
        bar("tokens/s of a core, samples and labels", both["tokens_per_second"], LEAST_TOKENS, at_least=True),
    ]
    keep(found, tables(found), given)


if __name__ == "__main__":
    sys.exit(main())
