"""Passes without gradient in all training processes: the bits of one process, and no process left behind."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, RunStage, StageProgress, TrainerInit
from pipeline.errors import RunError
from pipeline.storage.rows import read_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

SETTINGS = ("rounds=1", "sampler.kind=transformers", "training.micro_batch_size=3", "loss.preset=mallows_theta")
FSDP = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job, a run up to its first reference pass, and configs of accelerate."""
    folder = make_job(tmp_path_factory.mktemp("job"))
    for name, further in (("ddp", {"distributed_type": "MULTI_CPU"}), ("fsdp", FSDP)):
        for count in (2, 3):
            plain: dict[str, Any] = {**further, "num_processes": count, "use_cpu": True}
            (folder / f"{name}{count}.yaml").write_text(yaml.safe_dump(plain))
    context = opened(folder, folder / "run")
    begin(context)
    run_stage(context, 1, "pairs")
    run_stage(context, 0, "evaluation_samples", workers(folder))
    return folder


def workers(job: Path) -> Any:
    return InventedResponses(job / "model")


def opened(job: Path, root: Path, *settings: str) -> Context:
    return open_context(job, root, "offline", *SETTINGS, *settings)


def told(run: RunFolder) -> tuple[list[Any], dict[str, Any]]:
    """What the two stages with passes have written."""
    reference = [*read_rows(run.stage(1, "reference").folder / "reference_0")]
    return reference, json.loads((run.stage(0, "evaluation").folder / "metrics.json").read_text())


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    # prefloop's command line and these tests set it alike.
    assert os.environ["MKL_CBWR"] == "AUTO"
    torch.manual_seed(0)
    states, weights = torch.randn(7, 512), torch.randn(1536, 512)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            products.append(torch.nn.functional.linear(states, weights))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*products)


@pytest.fixture(scope="module")
def alone(job: Path) -> tuple[list[Any], dict[str, Any]]:
    context = opened(job, job / "run")
    run_stage(context, 1, "reference")
    run_stage(context, 0, "evaluation")
    found = told(context.run)
    for stage in (context.run.stage(1, "reference"), context.run.stage(0, "evaluation")):
        shutil.rmtree(stage.folder)
    return found


def begun(job: Path, root: Path, launch: str) -> TrainerInit:
    """What a trainer child is started with, to share passes as ``launch`` says."""
    shutil.copytree(job / "run", root)
    context = opened(job, root, f"accelerate={job / launch}.yaml")
    return TrainerInit(str(root), context.config.model_dump(mode="json"))


@pytest.mark.parametrize(
    "launch",
    ["ddp2", pytest.param("ddp3", marks=pytest.mark.whole), pytest.param("fsdp2", marks=pytest.mark.whole)],
)
def test_all_processes_give_the_bits_of_one(job: Path, alone: Any, tmp_path: Path, launch: str) -> None:
    init = begun(job, tmp_path / "run", launch)
    seen: list[int] = []

    def watch(progress: StageProgress) -> None:
        seen.append(len(psutil.Process(trainer.pid).children()))

    with Child(TRAINER, init, tmp_path / "run" / "logs" / "trainer.log", 200) as trainer:
        trainer.call(RunStage(1, "reference"), Done, 200, watch)
        trainer.call(RunStage(0, "evaluation"), Done, 200)
    assert max(seen) == int(launch[-1]) - 1
    reference, metrics = told(RunFolder(tmp_path / "run"))
    assert len(reference) == 16 and reference == alone[0]
    assert metrics["kl_to_start"] is not None and metrics["held_out_pairs"] == 4
    assert metrics == alone[1]


def test_a_process_that_dies_ends_the_stage_and_sealed_shards_stay(job: Path, alone: Any, tmp_path: Path) -> None:
    init = begun(job, tmp_path / "run", "ddp2")

    def kill_other(progress: StageProgress) -> None:
        for other in psutil.Process(trainer.pid).children():
            other.kill()

    words = r"process 1 of training: .*died .*signal SIGKILL"
    with Child(TRAINER, init, tmp_path / "trainer.log", 200) as trainer, pytest.raises(RunError, match=words):
        trainer.call(RunStage(1, "reference"), Done, 200, kill_other)
    context = opened(job, tmp_path / "run")
    assert not context.run.stage(1, "reference").folder.exists()
    run_stage(context, 1, "reference")
    run_stage(context, 0, "evaluation")
    assert told(context.run) == alone


@pytest.mark.whole
def test_a_discriminator_is_trained_alone_after_passes_of_all_processes(job: Path, tmp_path: Path) -> None:
    learns = (
        "rounds=1",
        "prompts_per_round=12",
        "discriminator.budget=8",
        "discriminator.gate={held_out: 0.25, comparisons: 1, error: 1}",
        "discriminator.training={max_steps: 2, batch_size: 4}",
    )
    context = open_context(
        job,
        tmp_path / "run",
        "iterative",
        "rounds=1",
        f"accelerate={job / 'ddp2'}.yaml",
        "prompts_per_round=12",
        *learns,
    )
    begin(context)
    run_stage(context, 0, "evaluation_samples", workers(job))
    for name in ("samples", "gold"):
        run_stage(context, 1, name, workers(job))
    init = TrainerInit(str(context.run.root), context.config.model_dump(mode="json"))
    with Child(TRAINER, init, tmp_path / "trainer.log", 200) as trainer:
        trainer.call(RunStage(0, "evaluation"), Done, 200)
        trainer.call(RunStage(1, "discriminator"), Done, 100)
    assert context.run.stage(1, "discriminator").require().metrics["accuracy"] is not None
