"""Layers with sliding windows and chunks share prompts too: values and gradients are those of plain transformers.

Tiny random models of the families that mix layers of several kinds. Rows reach beyond the window on both sides of the
prompt's end, and several of them are packed.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from pipeline.models.architectures import make_exact, switch_noise_off
from pipeline.models.attention import reach, shared_prompts
from pipeline.models.attention.packing import pack
from pipeline.models.attention.reach import WHOLE_ROW, Reach, reach_of
from pipeline.models.token_logps import TokenLogps
from tests.support.tiny_training import random_ids

WINDOW = 5
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ONE: dict[str, Any] = {**SMALL, "sliding_window": WINDOW}
MIXED: dict[str, Any] = {**ONE, "layer_types": ["sliding_attention", "full_attention"] * 2}
LATE: dict[str, Any] = {**ONE, "use_sliding_window": True, "max_window_layers": 2}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
CAPPED: dict[str, Any] = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
CHUNKED: dict[str, Any] = {
    **SMALL,
    **EXPERTS,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"] * 2,
    # Of layers without rotary embedding, queries are scaled by their position.
    "no_rope_layers": [1, 0, 1, 0],
    "floor_scale": 4,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "cohere 2": lambda: hf.Cohere2Config(**MIXED),
    "dots 1": lambda: hf.Dots1Config(**MIXED, **ROUTED, num_experts_per_tok=2),
    "exaone 4": lambda: hf.Exaone4Config(**MIXED),
    "gemma 2, capped": lambda: hf.Gemma2Config(**MIXED, **CAPPED),
    "gemma 3": lambda: hf.Gemma3TextConfig(**MIXED, query_pre_attn_scalar=8),
    "gpt-oss, with sinks": lambda: hf.GptOssConfig(**MIXED, **EXPERTS),
    "llama 4, chunked": lambda: hf.Llama4TextConfig(**CHUNKED),
    "ministral": lambda: hf.MinistralConfig(**MIXED),
    "mistral": lambda: hf.MistralConfig(**ONE),
    "mixtral": lambda: hf.MixtralConfig(**ONE, **EXPERTS),
    "olmo 3": lambda: hf.Olmo3Config(**MIXED),
    "phi 3": lambda: hf.Phi3Config(**{name: value for name, value in ONE.items() if name != "head_dim"}),
    "qwen 2": lambda: hf.Qwen2Config(**LATE),
    "qwen 3": lambda: hf.Qwen3Config(**LATE),
    "qwen 3 moe": lambda: hf.Qwen3MoeConfig(**LATE, **EXPERTS, moe_intermediate_size=16),
    "smollm 3": lambda: hf.SmolLM3Config(**MIXED, use_sliding_window=True, no_rope_layers=[1, 0, 1, 0]),
    "starcoder 2": lambda: hf.Starcoder2Config(**ONE),
}
Rows = list[tuple[tuple[int, ...], tuple[int, ...]]]


def tiny(family: str) -> Any:
    """A random model, whose sinks, scales and biases are random too; prepared as policies are when they are loaded."""
    torch.manual_seed(0)
    settings = FAMILIES[family]()
    switch_noise_off(settings)
    model = hf.AutoModelForCausalLM.from_config(settings).float()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "sinks" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.15)
    return make_exact(model)


def some_rows() -> Rows:
    """Prompts longer and shorter than the window; responses that end within it and far beyond."""
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return random_ids(draw, count, count)

    long, short = ids(13), ids(2)
    return [(long, ids(9)), (long, ids(3)), (long, ids(12)), (short, ids(11)), (short, ids(2)), (ids(3), ids(1))]


def weighted(logps: Tensor, row: int) -> Tensor:
    """A sum in which no two tokens weigh the same."""
    return (logps * torch.linspace(-1, 1, len(logps) + 1)[1:] * (row + 1)).sum()


def plainly(model: Any, rows: Rows) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probs of each row by the model itself, one row at a time, and the gradient of their weighted sum."""
    model.zero_grad()
    found = []
    for row, (prompt, ids) in enumerate(rows):
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0].log_softmax(-1)
        logps = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        weighted(logps, row).backward()
        found.append(logps.detach())
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(policy: TokenLogps, rows: Rows, packed: bool = True) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from one pass, of a stream or of padded rows."""
    model = policy.model
    model.zero_grad()
    longest = max(len(prompt) + len(ids) for prompt, ids in rows)
    ids = torch.tensor([prompt + ids + (0,) * (longest - len(prompt) - len(ids)) for prompt, ids in rows])
    mask = torch.tensor([[len(p) <= at < len(p) + len(i) for at in range(longest)] for p, i in rows])
    values = policy(ids, mask, pack(rows) if packed else None).policy
    found = [row[one] for row, one in zip(values, mask, strict=True)]
    torch.stack([weighted(logps, row) for row, logps in enumerate(found)]).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [logps.detach() for logps in found], grads


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_and_padded_rows_have_the_values_and_gradients_of_plain_transformers(family: str) -> None:
    model, rows = tiny(family), some_rows()
    expected, gradient = plainly(model, rows)
    policy = TokenLogps(model, share_prompts=True)
    assert policy.padded_because is None
    for packed in (True, False):
        found, made = ours(policy, rows, packed)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert made.keys() == gradient.keys()
        for name, values in gradient.items():
            scale = max(1.0, float(values.abs().max()))
            torch.testing.assert_close(made[name], values, atol=1e-5 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("family", ["gemma 3", "gpt-oss, with sinks", "llama 4, chunked", "mistral"])
def test_the_rows_of_these_tests_reach_beyond_the_windows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(family), some_rows()
    expected, policy = plainly(model, rows)[0], TokenLogps(model, share_prompts=True)
    # A planted error: every layer sees its whole row.
    monkeypatch.setattr(reach, "reach_of", lambda *_: WHOLE_ROW)
    found, _ = ours(policy, rows)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) > 1e-2


def test_windows_are_counted_in_positions_of_a_row_not_in_places_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny("mistral"), some_rows()
    expected, policy = plainly(model, rows)[0], TokenLogps(model, share_prompts=True)
    whole = shared_prompts.parts

    def by_places(packed: Any, one: Reach) -> Any:
        # A planted error: continuations begin where they stand.
        tree = torch.cat([torch.arange(int(length)) for length in packed.lengths])
        return whole(replace(packed, positions=tree, branch=packed.branch.clamp(max=1)), one)

    monkeypatch.setattr(shared_prompts, "parts", by_places)
    found, _ = ours(policy, rows)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) > 1e-2


def test_a_window_that_is_longer_than_every_row_restricts_none() -> None:
    assert Reach("window", 22).within(22) == WHOLE_ROW
    assert Reach("window", 21).within(22) == Reach("window", 21)
    longest = max(len(prompt) + len(ids) for prompt, ids in some_rows())
    shared = shared_prompts.Shared(pack(some_rows()))
    assert shared.longest == longest
    assert all(part.mask is None for part in shared.parts(Reach("window", longest).within(longest)))
    assert any(part.mask is not None for part in shared.parts(Reach("window", longest - 1)))


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_the_reach_is_told_from_the_mask_that_transformers_makes(size: int) -> None:
    masks = hf.masking_utils
    assert reach_of(masks.causal_mask_function, None) == WHOLE_ROW
    assert reach_of(masks.sliding_window_causal_mask_function(size), size) == Reach("window", size)
    if size > 1:
        chunks = masks.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
        assert reach_of(chunks, size) == Reach("chunk", size)
    for other in (masks.sliding_window_bidirectional_mask_function(size), masks.causal_mask_function):
        with pytest.raises(ValueError, match="neither causal, nor a causal window or chunk"):
            reach_of(other, size)
