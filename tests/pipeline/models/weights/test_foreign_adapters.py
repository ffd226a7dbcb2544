"""Adapters that peft itself made, of every shape that it has: read, trained on and merged with peft's own values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config import Optimisation
from pipeline.models.policy import load_policy, score_sequences, write_merged
from pipeline.models.weights.adapter_folder import copy_adapter
from pipeline.models.weights.lora import require_fitting, save_adapter
from pipeline.training.reference import reference_logps, with_references
from tests.support.tiny_families import TEXT, save_family
from tests.support.tiny_training import dpo, random_pairs, trained

IDS = [[9, 20, 33, 14, 25, 36], [5, 7, 31, 12, 3, 8]]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "ranks by pattern": (
        "llama", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 6, r"0\.self_attn\.q_proj": 2}}
    ),
    "scales by pattern": (
        "llama", {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"^model.layers.1.self_attn.v_proj": 40}}
    ),
    "one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 1}),
    "layers by name": (
        "llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}
    ),
    "a regular expression": ("llama", {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"}),
    "every linear layer": ("llama", {"target_modules": "all-linear"}),
    "every linear layer but some": (
        "llama",
        {"target_modules": "all-linear", "exclude_modules": r".*\.(up|down)_proj"},
    ),
    "peft's own choice": ("llama", {}),
    "transposed layers": ("gpt-2", {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}),
    "transposed layers, not said": ("gpt-2", {"target_modules": ["c_attn"]}),
    "transposed layers with DoRA": ("gpt-2", {"target_modules": ["c_attn"], "use_dora": True}),
    "experts": ("qwen 3 moe", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "experts and layers": (
        "qwen 3 moe",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "rsLoRA": ("llama", {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 9}}),
    "DoRA": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "a head trained whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}  # fmt: skip


def their_adapter(folder: Path, shape: str) -> tuple[Path, Path]:
    """A base, and an adapter on it that is nowhere near nothing, both as their libraries save them."""
    family, settings = SHAPES[shape]
    base = save_family(TEXT[family](), folder / "base")
    torch.manual_seed(1)
    model = get_peft_model(plain(base), LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "modules_to_save" in name):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder / "theirs")
    return base, folder / "theirs"


def plain(folder: Path) -> PreTrainedModel:
    made: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_pretrained
    return made(folder, dtype=torch.float32)


def their_logps(model: Any) -> list[float]:
    """By one plain forward pass for each sequence."""
    found: list[float] = []
    with torch.no_grad():
        for ids in map(torch.tensor, IDS):
            logits = model.eval()(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            found += logits.gather(-1, ids[1:, None])[:, 0].tolist()
    return found


def our_logps(model: Any) -> list[float]:
    return [value for row in score_sequences(model, IDS) for value in row]


# peft warns that it transposes what does not say so.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_read_trained_on_and_merged_as_peft_does(tmp_path: Path, shape: str) -> None:
    base, theirs = their_adapter(tmp_path, shape)
    require_fitting(str(theirs), str(base))
    (start := tmp_path / "start").mkdir()
    copy_adapter(str(theirs), start, str(base))
    policy = load_policy(str(start), trained=True)
    first = their_logps(PeftModel.from_pretrained(plain(base), theirs))
    assert our_logps(policy) == pytest.approx(first, abs=1e-5) != pytest.approx(their_logps(plain(base)), abs=1e-3)
    examples = random_pairs(4)
    examples = with_references(examples, [reference_logps(policy, examples)])
    one_step = Optimisation(batch_size=4, learning_rate=1e-2, warmup=0, epochs=1, schedule="constant")
    assert len(trained(policy, examples, dpo(), one_step).history) == 1
    save_adapter(policy, tmp_path / "ours", str(base))
    after = their_logps(PeftModel.from_pretrained(plain(base), tmp_path / "ours"))
    assert our_logps(policy) == pytest.approx(after, abs=1e-5) != pytest.approx(first, abs=1e-3)
    write_merged(str(tmp_path / "ours"), tmp_path / "merged")
    assert their_logps(plain(tmp_path / "merged")) == pytest.approx(after, abs=1e-5)
