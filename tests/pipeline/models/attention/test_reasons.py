"""Models that are padded say why, and the reason is true: a stream would give them other values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from pipeline.models.architectures import make_exact, switch_noise_off
from pipeline.models.attention import shared_prompts
from pipeline.models.attention.reasons import why_unlike_rows
from pipeline.models.attention.shared_prompts import why_not_shared
from tests.pipeline.models.attention.test_windows import EXPERTS, SMALL

STATES: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["full_attention", "linear_attention"] * 2,
}
PLAIN: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2}
NEMOTRON: dict[str, Any] = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1}
SPACE, DELTA = (
    "keeps a recurrent state (a state-space layer)",
    "keeps a recurrent state (linear attention by a delta rule)",
)
# For each family, its config and the reason without the model's name.
HYBRID: dict[str, tuple[Callable[[], Any], str]] = {
    "bamba": (lambda: hf.BambaConfig(**SMALL, **STATES, attn_layer_indices=[1]), f"layer 0 {SPACE}: BambaMixer"),
    "falcon h1": (
        lambda: hf.FalconH1Config(**SMALL, **STATES, mamba_d_ssm=64),
        f"layer 0 {SPACE}: FalconH1Mixer",
    ),
    "jamba": (
        lambda: hf.JambaConfig(
            **SMALL, **EXPERTS, attn_layer_period=2, attn_layer_offset=0, mamba_d_state=4, use_mamba_kernels=False
        ),
        f"layer 1 {SPACE}: JambaMambaDecoderLayer",
    ),
    "granite 4": (
        lambda: hf.GraniteMoeHybridConfig(
            **SMALL, **EXPERTS, **STATES, layer_types=["attention", "mamba"] * 2, shared_intermediate_size=16
        ),
        f"layer 1 {SPACE}: GraniteMoeHybridMambaLayer",
    ),
    "lfm2": (
        lambda: hf.Lfm2Config(**SMALL, layer_types=["full_attention", "conv"] * 2),
        "layer 1 mixes neighbouring tokens by a convolution: Lfm2ShortConv",
    ),
    "minimax": (
        lambda: hf.MiniMaxConfig(
            **SMALL, **EXPERTS, layer_types=["full_attention", "linear_attention"] * 2, block_size=4
        ),
        "layer 1 keeps a recurrent state (linear attention): MiniMaxLightningAttention",
    ),
    "nemotron h": (
        lambda: hf.NemotronHConfig(**SMALL, **NEMOTRON, layers_block_type=["attention", "mlp", "mamba", "mlp"]),
        f"layer 2 {SPACE}: NemotronHMamba2Mixer",
    ),
    "qwen 3 next": (
        lambda: hf.Qwen3NextConfig(**SMALL, **EXPERTS, **LINEAR, shared_expert_intermediate_size=16),
        f"layer 1 {DELTA}: Qwen3NextGatedDeltaNet",
    ),
    "qwen 3.5": (lambda: hf.Qwen3_5TextConfig(**SMALL, **LINEAR), f"layer 1 {DELTA}: Qwen3_5GatedDeltaNet"),
    "recurrent gemma": (
        lambda: hf.RecurrentGemmaConfig(
            **SMALL, attention_window_size=5, lru_width=32, block_types=["recurrent", "recurrent", "attention"]
        ),
        "layer 0 keeps a recurrent state: RecurrentGemmaRecurrentBlock",
    ),
}
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),
        "attention is biased by the distance of places in the pass (ALiBi)",
    ),
    "falcon with alibi": (
        lambda: hf.FalconConfig(**PLAIN, num_attention_heads=4, alibi=True),
        "attention is biased by the distance of places in the pass (ALiBi)",
    ),
    "falcon": (
        lambda: hf.FalconConfig(**PLAIN, num_attention_heads=4),
        "its attention is code of its own, not taken from transformers' registry",
    ),
    "mpt": (
        lambda: hf.MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
        "attention is biased by the distance of places in the pass (ALiBi)",
    ),
    "mamba": (lambda: hf.MambaConfig(**PLAIN, state_size=4), f"layer 0 {SPACE}: MambaBlock"),
    "mamba 2": (
        lambda: hf.Mamba2Config(**PLAIN, state_size=4, num_heads=8, head_dim=8, n_groups=1),
        f"layer 0 {SPACE}: Mamba2Block",
    ),
    "rwkv": (lambda: hf.RwkvConfig(**PLAIN), "layer 0 keeps a recurrent state (linear attention): RwkvBlock"),
}


def tiny(settings: Any) -> Any:
    torch.manual_seed(0)
    switch_noise_off(settings)
    model = hf.AutoModelForCausalLM.from_config(settings).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return make_exact(model)


@pytest.mark.parametrize("family", [*HYBRID, *OTHERS])
def test_the_reason_names_the_layer_and_is_known_without_weights(family: str) -> None:
    make, reason = {**HYBRID, **OTHERS}[family]
    model = tiny(make())
    expected = f"{type(model).__name__}: {reason}"
    before = model.config._attn_implementation
    assert why_not_shared(model) == expected
    assert model.config._attn_implementation == before
    with torch.device("meta"):
        assert why_unlike_rows(hf.AutoModelForCausalLM.from_config(make())) == expected


@pytest.mark.parametrize("family", HYBRID)
def test_a_stream_would_give_other_values(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(HYBRID[family][0]())
    monkeypatch.setattr(shared_prompts, "why_unlike_rows", lambda _: None)
    assert "computes other values for shared prompts" in (why_not_shared(model) or "")


def test_masks_of_a_models_own_making_are_refused() -> None:
    model = tiny(hf.DogeConfig(**SMALL))
    assert why_not_shared(model) == "DogeForCausalLM does not take packed streams: its attention has masks of its own"


def test_attention_in_both_directions_is_refused() -> None:
    settings = hf.Gemma3TextConfig(**SMALL, query_pre_attn_scalar=8, use_bidirectional_attention=True)
    found = why_not_shared(tiny(settings))
    assert found == "Gemma3ForCausalLM does not take packed streams: its attention has a mask of its own"
