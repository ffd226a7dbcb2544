"""The plan's bytes of a policy's files, against those that a real tiny round writes."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from flows.planning.arithmetic import ParameterCounts, Round
from flows.planning.disk import disk_use, stored_weights
from flows.planning.machine import stage_bytes
from pipeline.config import Lora
from pipeline.config.files import dump_config
from pipeline.models.weights.lora import add_adapter
from pipeline.storage.atomic import write_text
from tests.support.tiny_run import begin, make_job, open_context, train

COUNTS = Round(10, 2, 20.0, 30.0, 10, 2, 20.0, 30.0, 4, 2, 1, 1.0)
BASE = ("gate=null", "training.dtype=bfloat16")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("job"))
    LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("training.weights=bfloat16",),
        ("training.lora={rank: 8, lifetime: run}",),
        ("training.lora={rank: 8, lifetime: round}",),
    ],
)
def test_a_plan_counts_the_weights_that_a_round_writes(job: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    context = open_context(job, tmp_path / "run", "offline", *BASE, *settings)
    context.run.root.mkdir(parents=True, exist_ok=True)
    write_text(context.run.config_file, dump_config(context.config))
    begin(context)
    asked = stage_bytes(context.run, context.config, 1, "policy")
    train(context, 1)
    policy = context.run.stage(1, "policy").folder
    whole = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(job / "model").parameters())
    lora = context.config.training.lora
    adapter = 0 if lora is None else _adapter_size(job, lora)
    used = disk_use(
        COUNTS,
        ParameterCounts(whole + adapter, adapter or whole),
        made_start=False,
        carried=False,
        averaged=False,
        checkpoints=False,
        best=False,
        iterative=False,
        stored=stored_weights(context.config, job / "model"),
    )
    files = {file.relative_to(policy): file.stat().st_size for file in policy.rglob("*.safetensors")}
    masters = sum(size for name, size in files.items() if "masters" in name.parts)
    assert used.round["policy"] == pytest.approx(sum(files.values()) - masters, rel=0.1)
    assert used.masters == pytest.approx(masters, rel=0.1)
    # The check before a stage takes an adapter to be 2 % of the model; this one is far more of a tiny one.
    assert asked >= sum(files.values()) or (lora is not None and lora.lifetime == "run")


def _adapter_size(job: Path, lora: Lora) -> int:
    model = add_adapter(LlamaForCausalLM.from_pretrained(job / "model"), lora, seed=0)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
