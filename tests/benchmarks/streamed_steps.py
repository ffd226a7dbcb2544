"""Optimiser steps over a round in a run folder, in a process of its own: what more pairs cost in time and memory.

As the product does it: pairs and reference log-probabilities stream from parquet into the file that training reads,
which is checked, hashed and planned. Another process writes the parquet, so that what the pairs took there counts for
nothing here.
"""

import gc
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context
from flows.stages.training.examples import examples_with_reference
from flows.stages.training.train import fit
from pipeline.config import RunConfig
from pipeline.losses import Loss
from pipeline.storage.rows import REFERENCE, write_preferences, write_table
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Message, Pair, Prompt, Response
from tests.benchmarks.generated_pairs import generate_pairs, room_for_rows
from tests.benchmarks.isolated import Facts, cores, serve
from tests.benchmarks.llama_shapes import SHAPES, random_llama
from tests.benchmarks.preference_steps import BETA, RATE, WARM_PAIRS, reference_nats
from tests.benchmarks.process_memory import PeakMemory


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Visits of pairs a second within steps, seconds beside the steps, MiB."""
    torch.set_num_threads(cores())
    for name, count in (("warm", WARM_PAIRS), ("run", job["pairs"])):
        _apart(folder / name, {**job, "pairs": count})
    shape = SHAPES[job["shape"]]
    model = random_llama(shape, room_for_rows(job["prompt"], job["response"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    memory = PeakMemory(cuda=False)
    _train(model, folder / "warm", job)
    gc.collect()
    start = time.perf_counter()
    steps = _train(model, folder / "run", job)
    whole = time.perf_counter() - start
    visits = job["pairs"] * job["epochs"]
    return {
        "seconds": steps,
        "opening_seconds": whole - steps,
        "pairs_per_second": visits / steps,
        "seconds_a_visit": steps / visits,
        "seconds_a_pair": steps / visits + (whole - steps) / job["pairs"],
        "memory_mib": memory.above(),
        "memory_source": memory.source,
    }


def _train(model: Any, root: Path, job: Facts) -> float:
    """All steps; seconds within them."""
    training = {"batch_size": job["batch_size"], "learning_rate": RATE, "schedule": "constant", "warmup": 0.0}
    training |= {"dtype": job["dtype"], "epochs": job["epochs"], **job.get("ours", {})}
    given = {"name": "growth", "mode": "offline", "policy": {"path": "none"}, "pairs": {"path": "none"}}
    config = RunConfig.model_validate({**given, "loss": {"preset": "dpo", "beta": BETA}, "training": training})
    context, out = Context(RunFolder(root), config), root / "policy"
    out.mkdir()
    examples, loss = examples_with_reference(context, 1), Loss("dpo", config.loss)
    outcome = fit(context, out, model, examples, loss, config.training, seed=0)
    seconds = outcome.metrics["seconds"]
    assert isinstance(seconds, float), "every run of training reports them"
    return seconds


def _apart(root: Path, job: Facts) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_round, args=(root, job))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"writing the pairs ended with {process.exitcode}")


def write_round(root: Path, job: Facts) -> None:
    """The folders of round 1 that training reads."""
    shape, stages = SHAPES[job["shape"]], root / "round_001"
    nats = reference_nats(shape)
    pairs = [
        Pair(Prompt((Message("user", str(index)),)), pair.prompt, _response(pair.chosen), _response(pair.rejected))
        for index, pair in enumerate(
            generate_pairs(job["pairs"], job["prompt"], job["response"], shape.vocabulary, job["seed"])
        )
    ]
    for folder in (stages / "pairs", stages / "reference" / reference_name(0)):
        folder.mkdir(parents=True)
    write_preferences(stages / "pairs" / "rows.parquet", pairs)
    rows = (
        {"id": pair.id, "logps": [[nats] * len(side.token_ids) for side in (pair.chosen, pair.rejected)]}
        for pair in pairs
    )
    write_table(stages / "reference" / reference_name(0) / "shard_00000.parquet", REFERENCE, rows)


def _response(ids: tuple[int, ...]) -> Response:
    return Response("", ids, (), "stop")


if __name__ == "__main__":
    serve(measure)
