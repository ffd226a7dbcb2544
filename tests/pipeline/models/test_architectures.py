"""Tiny random models of real architectures: exact log-probs, and every weight and setting in what is saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from pipeline.config import ChatSettings, Lora, TransformersSampler
from pipeline.errors import UserError
from pipeline.models.architectures import attention_cap, auto_class
from pipeline.models.attention.shared_prompts import why_not_shared
from pipeline.models.chat import load_chat
from pipeline.models.lora import add_adapter
from pipeline.models.policy import load_policy, save_policy
from pipeline.sampling.transformers_engine import TransformersEngine
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer

WORDS = len(tiny_tokenizer())
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 320,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PLAIN = {name: value for name, value in SIZES.items() if name != "head_dim"}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
IMAGES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_IMAGES: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
}


def gemma_2(**others: Any) -> Any:
    cap: dict[str, Any] = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 32}
    return hf.Gemma2Config(**SIZES, **cap, **others)


def qwen_3_5() -> Any:
    linear = dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32)
    heads = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2)
    kinds = {"layer_types": ["linear_attention", "full_attention"], "attention_dropout": 0.3}
    return hf.Qwen3_5Config(
        text_config={**SIZES, **linear, **heads, **kinds}, vision_config=QWEN_IMAGES, image_token_id=WORDS - 1
    )


def gemma_3() -> Any:
    tokens: dict[str, Any] = {
        "image_token_index": WORDS - 1,
        "boi_token_index": WORDS - 2,
        "eoi_token_index": WORDS - 3,
    }
    text = {**SIZES, "query_pre_attn_scalar": 32, "attention_dropout": 0.2}
    return hf.Gemma3Config(text_config=text, vision_config=IMAGES, mm_tokens_per_image=4, **tokens)


def llama_4() -> Any:
    sizes = dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32)
    return hf.Llama4Config(
        text_config={**SIZES, "num_local_experts": 2, "intermediate_size_mlp": 64},
        vision_config={**IMAGES, **sizes, "intermediate_size": 64},
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma 2": gemma_2,
    "gemma 3 with images": gemma_3,
    "gpt-2": lambda: hf.GPT2Config(vocab_size=WORDS, n_embd=64, n_layer=2, n_head=2, n_positions=320, eos_token_id=2),
    "llama 4 text": lambda: hf.Llama4TextConfig(**SIZES, num_local_experts=2, intermediate_size_mlp=64),
    "llama 4 with images": llama_4,
    "mamba": lambda: hf.MambaConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, state_size=8),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, **EXPERTS, router_jitter_noise=0.3, output_router_logits=True),
    "phi-3.5 moe": lambda: hf.PhimoeConfig(**PLAIN, **EXPERTS, router_jitter_noise=0.3, input_jitter_noise=0.2),
    "qwen 2.5 with images": lambda: hf.Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
        vision_config=QWEN_IMAGES,
        image_token_id=WORDS - 1,
    ),
    "qwen 3.5 with images": qwen_3_5,
}
PADDED = {"mamba", "qwen 3.5 with images"}


def saved(settings: Any, folder: Path, seed: int = 0) -> Path:
    """Save a random model with this config, as its authors would."""
    torch.manual_seed(seed)
    model = auto_class(settings).from_config(settings)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tensors(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            found |= set(weights.keys())
    return found


def noise(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``config.json`` that the file's own model has for dropout, noise and routers."""
    parts = {name: noise(part) for name, part in settings.items() if isinstance(part, dict)}
    names = ("drop", "pdrop", "jitter", "router_logits")
    own = {name: value for name, value in settings.items() if any(part in name for part in names)}
    return own | {name: part for name, part in parts.items() if part}


@torch.no_grad()
def logps(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact_whole_and_comes_back(family: str, tmp_path: Path) -> None:
    start = saved(FAMILIES[family](), tmp_path / "start")
    model = load_policy(str(start))
    ids = torch.randint(7, WORDS, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = logps(model, ids)
    assert torch.equal(logps(model.train(), ids), expected), "a pass in training mode is random"
    model.eval()
    save_policy(model, tmp_path / "new", tokenizer_source=str(start), chat=load_chat(str(start), ChatSettings()))
    assert tensors(tmp_path / "new") == tensors(start)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (start, tmp_path / "new"))
    assert noise(after) == noise(before)
    assert (after["model_type"], after["architectures"]) == (before["model_type"], before["architectures"])
    again = load_policy(str(tmp_path / "new"))
    assert torch.equal(logps(again, ids), expected)
    assert (why_not_shared(again) is None) == (family not in PADDED), why_not_shared(again)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_default_adapter_fits_on_what_reads_text(family: str, tmp_path: Path) -> None:
    adapted = add_adapter(load_policy(str(saved(FAMILIES[family](), tmp_path))), Lora(rank=2), seed=0)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    assert not any("vision" in name or "visual" in name or "projector" in name for name in names)
    adapted(input_ids=torch.tensor([[7, 8, 9]]), use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if p.requires_grad and "lora_B" in name)


def test_of_an_image_text_model_only_the_language_model_is_trained(tmp_path: Path) -> None:
    model = load_policy(str(saved(qwen_3_5(), tmp_path)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "visual" in name}
    assert frozen


@pytest.mark.parametrize("kinds", [{}, {"layer_types": ["full_attention"] * 2}])
def test_an_attention_cap_is_computed(kinds: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(gemma_2(**kinds), tmp_path)
    ids = torch.randint(7, WORDS, (1, 20), generator=torch.Generator().manual_seed(0))
    capped = logps(hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), ids)
    uncapped = logps(hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval(), ids)
    assert float((capped - uncapped).abs().max()) > 0.1
    model = load_policy(str(folder))
    assert torch.allclose(logps(model, ids), capped, atol=1e-5)
    assert why_not_shared(model) is None
    assert torch.allclose(logps(model, ids), capped, atol=1e-5), "the trial of shared prompts changed the attention"
    chat = load_chat(str(folder), ChatSettings())
    scores = TransformersEngine(str(folder), chat, TransformersSampler()).score(ids.tolist())
    assert scores[0] == pytest.approx(capped[0, :-1].gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-5)


def test_a_cap_on_logits_alone_is_no_attention_cap() -> None:
    assert attention_cap(gemma_2())
    assert not attention_cap(hf.Gemma2Config(**SIZES, attn_logit_softcapping=None))


def test_settings_for_sampling_that_transformers_refuses_to_save_are_saved_unchanged(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "start")
    text = json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 6]})
    (start / "generation_config.json").write_text(text)
    save_policy(
        load_policy(str(start)),
        tmp_path / "new",
        tokenizer_source=str(start),
        chat=load_chat(str(start), ChatSettings()),
    )
    assert (tmp_path / "new" / "generation_config.json").read_text() == text


def test_a_config_that_cannot_be_saved_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, folder: Any) -> None:
        raise ValueError("fix these issues to save the configuration")

    start = save_tiny_model(tmp_path)
    monkeypatch.setattr(hf.LlamaConfig, "save_pretrained", broken)
    with pytest.raises(UserError, match="cannot be saved after training: fix these issues"):
        load_policy(str(start))


def test_weights_that_the_config_does_not_know_are_refused(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path)
    settings = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"hold 9 tensors that the model of its config.json does not have"):
        load_policy(str(start))
