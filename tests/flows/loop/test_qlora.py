"""A run of two rounds on a 4-bit base, as its user starts it: sampled, labelled, trained, evaluated, exported."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from pipeline.training.step_log import read_steps
from tests.support.tiny_loop import prefloop
from tests.support.tiny_run import make_job


@pytest.mark.whole
def test_two_rounds_online_on_a_base_of_4_bits(home: dict[str, str], tmp_path: Path) -> None:
    job = make_job(tmp_path)
    LlamaForCausalLM.from_pretrained(job / "model", dtype=torch.bfloat16).save_pretrained(job / "model")
    settings = (
        "training.lora={rank: 4, rslora: true}", "policy.quantisation={bits: 4}", "sampler.kind=transformers",
        "training.optimiser_state=carried", "sampling.max_tokens=12", "scorer={kind: length, target_words: 4}",
        "evaluation.samples=1", "gate=null",
    )  # fmt: skip
    done = prefloop(home, "run", job / "iterative.yaml", *settings, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs" / "tiny"
    for round_ in (1, 2):
        folder = root / f"round_{round_:03d}"
        assert read_steps(folder / "policy" / "steps.jsonl")[0].loss == pytest.approx(math.log(2), abs=1e-3)
        shake = json.loads((folder / "evaluation_samples" / "manifest.json").read_text())["metrics"]["sampled"]
        # The engine holds the base in the same 4 bits, so nothing is allowed for them.
        assert shake["weight_handshake"]["dtype"] == "bfloat16" and shake["weight_handshake"]["merged"] is None
        assert (folder / "policy" / "adapter_model.safetensors").stat().st_size * 4 < (
            job / "model" / "model.safetensors"
        ).stat().st_size
    exported = prefloop(home, "export", root, tmp_path / "merged", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert model.dtype == torch.bfloat16 and not any("lora" in name for name in model.state_dict())
    assert prefloop(home, "verify", root, folder=tmp_path).returncode == 0
