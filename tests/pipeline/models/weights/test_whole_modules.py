"""Modules that are trained whole beside an adapter, on a base of any precision, also with tied embeddings."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from pipeline.config import Lora, Optimisation
from pipeline.models.policy import load_policy, score_sequences, write_merged
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter, save_adapter
from pipeline.training.reference import reference_logps, with_references
from tests.pipeline.models.weights.test_held_weights import HELD
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_training import dpo, random_pairs, trained

MODULES = ("embed_tokens", "norm", "input_layernorm", "lm_head")
IDS = [[9, 20, 33, 41, 50, 61]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("base"))
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", HELD)
def test_a_module_is_trained_whole_on_any_base_and_comes_back(
    base: Path, tmp_path: Path, name: str, module: str
) -> None:
    held = HELD[name]
    model = add_adapter(load_policy(str(base), held=held), Lora(rank=2, modules_to_save=(module,)), seed=0)
    passes = TokenLogps(model, share_prompts=True)
    assert passes.padded_because is None and passes._head is not None, "trials hold as without such a module"
    before = score_sequences(model, IDS)
    rounding = 1e-4 if name == "float32" else 0.15
    assert before[0] == pytest.approx(score_sequences(load_policy(str(base), held=held), IDS)[0], abs=rounding)
    examples = random_pairs(8)
    examples = with_references(examples, [reference_logps(model, examples)])
    settings = Optimisation(batch_size=8, learning_rate=1e-2, warmup=0, epochs=3, schedule="constant")
    losses = [step.loss for step in trained(model, examples, dpo(), settings, starts_at_reference=True).history]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4) and losses[-1] < losses[0] - 0.05
    save_adapter(model, tmp_path, str(base))
    kept = load_file(tmp_path / "adapter_model.safetensors")
    whole = [tensor for key, tensor in kept.items() if key.split(".")[-2] == module]
    start = load_file(base / "model.safetensors")
    stored = [tensor for key, tensor in start.items() if key.split(".")[-2] == module]
    assert len(whole) == len(stored) > 0 and all(t.dtype == torch.float32 for t in whole)
    assert all(not torch.equal(one, two.float()) for one, two in zip(whole, stored, strict=True))
    again = score_sequences(load_policy(str(tmp_path), held=held), IDS)
    assert again == score_sequences(model.eval(), IDS) != before


TIED = {
    "head trained whole": Lora(rank=2, modules_to_save=("lm_head",)),
    "embeddings trained whole": Lora(rank=2, modules_to_save=("embed_tokens",)),
    "both trained whole": Lora(rank=2, modules_to_save=("embed_tokens", "lm_head")),
    "an adapter on the head": Lora(rank=2, target_modules=("q_proj", "lm_head")),
    "an adapter on the embeddings": Lora(rank=2, target_modules=("q_proj", "embed_tokens")),
}


@pytest.mark.parametrize("case", TIED)
def test_tied_embeddings_part_where_an_adapter_changes_one_of_them(tmp_path: Path, case: str) -> None:
    base = save_tiny_model(tmp_path / "base", tied=True)
    adapter = save_tiny_adapter(tmp_path / "adapter", base, TIED[case], seed=1)
    ours, plain = (score_sequences(load_policy(str(path)), IDS) for path in (adapter, base))
    assert ours[0] != pytest.approx(plain[0], abs=0.01)
    write_merged(str(adapter), tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"))
    assert score_sequences(merged, IDS)[0] == pytest.approx(ours[0], abs=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)
