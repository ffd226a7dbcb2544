"""vLLM computes what transformers computes, family by family: with a fresh engine, and after other weights are loaded.

Heads have 64 dimensions; vLLM's attention on CPU knows 32, 64, 80, 96, 112, 128, 160, 192, 224 and 256.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from pipeline import config
from pipeline.errors import RunError
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, save_probe
from tests.support.tiny_families import EXPERTS, FEW, LOCAL, PLAIN, SMALL, WINDOW, save_family
from tests.support.tiny_sampler import vllm_process

pytestmark = pytest.mark.whole
WIDE: dict[str, Any] = {
    **{**PLAIN, "hidden_size": 128, "intermediate_size": 128},
    **{"num_attention_heads": 2, "num_key_value_heads": 2},
}
HEADS: dict[str, Any] = {**WIDE, "head_dim": 64}
GEMMA: dict[str, Any] = {**HEADS, **WINDOW, "query_pre_attn_scalar": 64}
LONG: dict[str, Any] = {
    "original_max_position_embeddings": 160,
    "rope_scaling": {"type": "longrope", "short_factor": [1.5] * 32, "long_factor": [4.0] * 32},
}


def llama(**rope: Any) -> Callable[[], Any]:
    return lambda: hf.LlamaConfig(**HEADS, rope_parameters={"rope_theta": 1e4, **rope})


FAMILIES: dict[str, Callable[[], Any]] = {
    # vLLM gives the window one token more than transformers: a window longer than the probe's rows.
    "cohere 2": lambda: hf.Cohere2Config(**{**WIDE, **WINDOW, "sliding_window": 64}, logit_scale=0.25),
    "falcon alibi": lambda: hf.FalconConfig(
        **{**FEW, "hidden_size": 128}, num_attention_heads=2, alibi=True, multi_query=False, bias=True
    ),
    "gemma 2": lambda: hf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "gemma 3": lambda: hf.Gemma3TextConfig(**GEMMA),
    "gpt-2": lambda: hf.GPT2Config(
        vocab_size=PLAIN["vocab_size"], n_embd=128, n_layer=2, n_head=2, n_positions=320, bos_token_id=1, eos_token_id=2
    ),
    "granite": lambda: hf.GraniteConfig(
        **WIDE, logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "llama, dynamic RoPE": llama(rope_type="dynamic", factor=4.0),
    "llama, linear RoPE": llama(rope_type="linear", factor=4.0),
    "llama, YaRN": llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=80),
    "mistral, window": lambda: hf.MistralConfig(**HEADS, sliding_window=8),
    "mixtral": lambda: hf.MixtralConfig(**HEADS, **LOCAL),
    "olmo 2": lambda: hf.Olmo2Config(**WIDE),
    "olmo 3": lambda: hf.Olmo3Config(**WIDE, **WINDOW),
    "opt": lambda: hf.OPTConfig(
        **{**FEW, "hidden_size": 128},
        ffn_dim=128,
        num_attention_heads=2,
        max_position_embeddings=320,
        word_embed_proj_dim=128,
    ),
    "phi 3, longrope": lambda: hf.Phi3Config(**WIDE, **LONG),
    "qwen 3": lambda: hf.Qwen3Config(**HEADS),
    "qwen 3 moe": lambda: hf.Qwen3MoeConfig(**HEADS, **EXPERTS, **SMALL),
    "smollm 3": lambda: hf.SmolLM3Config(**WIDE, no_rope_layers=[1, 0]),
    "stablelm": lambda: hf.StableLmConfig(**WIDE),
    "starcoder 2": lambda: hf.Starcoder2Config(**WIDE),
}


def policy(settings: Any, folder: Path, seed: int) -> Path:
    """A policy's folder with the trainer's own probe."""
    save_family(settings, folder, seed, scale=0.08)
    save_probe(load_policy(str(folder)), load_chat(str(folder), config.ChatSettings()), folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_holds_the_handshake_when_it_starts_and_when_it_is_loaded_again(family: str, tmp_path: Path) -> None:
    first, second = (policy(FAMILIES[family](), tmp_path / str(seed), seed) for seed in (0, 1))
    with vllm_process(tmp_path / "log", context=128) as process:
        start, again = process.load(str(first)), process.load(str(second))
    # vLLM 0.32.0 leaves tied heads and experts behind when it reloads, or refuses to; then a fresh engine is started.
    assert start.how == "start" and again.how in ("reload", "restart")
    # Of the 2e-3 nats that the handshake allows.
    assert start.max_difference < 2e-5 and again.max_difference < 2e-5


def test_with_a_longer_context_the_other_factors_of_longrope_are_blamed(tmp_path: Path) -> None:
    folder = policy(FAMILIES["phi 3, longrope"](), tmp_path / "model", 0)
    with (
        vllm_process(tmp_path / "log", context=320) as process,
        pytest.raises(RunError, match=r"scaled otherwise beyond 160 tokens \(RoPE 'longrope'\).*160 tokens at most"),
    ):
        process.load(str(folder))
