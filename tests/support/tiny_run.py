"""A run folder on a tiny model, stage by stage in this process: no Prefect, and a sampler that makes things up."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config import ChatSettings, SamplingSettings
from pipeline.config.files import load_config
from pipeline.config.labellers.reward_model import buys
from pipeline.config.loss.needs import needs_of
from pipeline.models.chat import load_chat
from pipeline.models.weights.adapter_folder import base_of
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.atomic import write_json
from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import MANIFEST, file_facts, plain, read_manifest
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Message, Response
from tests.support.tiny_model import save_tiny_model

SUBJECTS = ("dog", "cat", "barn", "mat")


def good(n: int) -> str:
    return f"ran to the old barn {n}"


def bad(n: int) -> str:
    return f"sat on mat {n}" + " mat" * (n % 3)


PAIRS: list[dict[str, Any]] = [
    {
        "prompt": f"the {SUBJECTS[n % 4]} {n}",
        "answer": "barn",
        "chosen": good(n),
        "rejected": bad(n),
        "chosen_score": 1.0 + n / 10,
        "rejected_score": 0.5,
    }
    for n in range(20)
]
GROUPS = [
    {"prompt": row["prompt"], "responses": [bad(n), good(n), f"mat {n}"], "rewards": [0.5, 1.5, -n / 10]}
    for n, row in enumerate(PAIRS)
]
MARKED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
FORMS: dict[str, list[dict[str, Any]]] = {"pairs": PAIRS, "groups": GROUPS, "marked": MARKED}


class InventedResponses:
    """Stands for ``flows.workers.local.Workers``: one good response, one bad one, more by lot.

    ``asked`` holds the model folders that responses were asked of, and the folders of their probes.
    """

    def __init__(self, model: Path) -> None:
        self.swaps: dict[str, Any] = {}
        self.asked: list[tuple[Path, Path]] = []
        self._chat = load_chat(base_of(model), ChatSettings())

    def sample(
        self, policy: Path, probe: Path, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        self.asked.append((policy, probe))
        return (self._group(random.Random(request.seed), settings.n) for request in requests)

    def sampler_pids(self) -> list[int]:
        return []

    def _group(self, draw: random.Random, count: int) -> tuple[Response, ...]:
        kinds = [good, bad, *draw.choices([good, bad], k=count)]
        if count == 1:
            kinds = draw.choices([good, bad])
        texts = [kind(draw.randrange(20, 100)) for kind in kinds[:count]]
        ids = [self._chat.response_ids((Message("user", "the dog"),), text) for text in texts]
        return tuple(Response(text, i, (-1.0,) * len(i), "stop") for text, i in zip(texts, ids, strict=True))


def make_job(folder: Path) -> Path:
    """Model, data in every form, and a config for either mode: the good responses of either end in a barn."""
    save_tiny_model(folder / "model")
    for name, rows in FORMS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"name: tiny\nrounds: 2\npolicy: {{path: {folder / 'model'}}}\nheld_out: {{prompts: 4}}\n"
        f"pairs: {{path: {folder / 'pairs.jsonl'}}}\n"
        "training: {learning_rate: 1.0e-3, batch_size: 4, warmup: 0, schedule: constant, "
        "reference_cache: null}\n"
    )
    (folder / "offline.yaml").write_text(f"{common}mode: offline\n")
    (folder / "iterative.yaml").write_text(
        f"{common}mode: iterative\nprompts: {{path: {folder / 'pairs.jsonl'}}}\nprompts_per_round: 8\n"
        "scorer: {kind: match}\nsampling: {n: 3}\n"
    )
    return folder


def open_context(job: Path, root: Path, mode: str, *settings: str, base: Path | None = None) -> Context:
    """A run folder, taken from ``base`` where that holds one that has begun alike."""
    if base is not None:
        shutil.copytree(base, root, dirs_exist_ok=True)
    return Context(RunFolder(root), load_config([job / f"{mode}.yaml"], settings))


def begin(context: Context) -> None:
    """Round 0 without its evaluation."""
    run_stage(context, 0, "data")
    run_stage(context, 0, "policy")


def supply(context: Context, round_: int) -> InventedResponses:
    """Every stage of a round up to what training reads."""
    workers: Any = InventedResponses(context.policy_path(0))
    names = ["samples", *_bought(context, round_), "labels"] if context.config.mode == "iterative" else []
    names += ["pairs"]
    names += ["calibration"] if needs_of(context.config.loss).calibration else []
    names += ["reference"] if needs_of(context.config.loss).stored_reference else []
    names += ["advantages"] if needs_of(context.config.loss).advantages else []
    for name in names:
        run_stage(context, round_, name, workers)
    invented: InventedResponses = workers
    return invented


def _bought(context: Context, round_: int) -> list[str]:
    settings = context.config.discriminator
    if settings is None or not buys(settings, round_):
        return []
    return ["gold", *(["discriminator"] if settings.trains else [])]


def train(context: Context, round_: int) -> None:
    """A round, without its evaluation."""
    supply(context, round_)
    run_stage(context, round_, "policy")
    if context.config.training.reference == "ema":
        run_stage(context, round_, "average")


def sealed_anew(context: Context, round_: int, name: str) -> None:
    """A manifest that vouches for what is there."""
    folder = context.run.stage(round_, name).folder
    manifest = read_manifest(folder / MANIFEST)
    files = {n: file_facts(file_sha256(folder / n), (folder / n).stat().st_size) for n in manifest.files}
    write_json(folder / MANIFEST, plain(replace(manifest, files=files).sealed()))
