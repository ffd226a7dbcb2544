"""Log-probabilities of response tokens against plain forward passes of transformers."""

import pytest
import torch
from tiny_training import tiny_llama
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from pipeline.logps import TokenLogps, head_logps, head_splits, token_logps

ROWS = [([5, 7, 9], [11, 13, 2]), ([4], [6]), ([8, 3], [10, 12, 14, 16, 18, 2])]
SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.3}


def padded(filler: int = 0) -> tuple[Tensor, Tensor]:
    width = max(len(p) + len(r) for p, r in ROWS)
    ids = torch.full((len(ROWS), width), filler)
    mask = torch.zeros(len(ROWS), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(ROWS):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, len(prompt) : len(prompt) + len(response)] = True
    return ids, mask


def plain(model: PreTrainedModel) -> list[list[float]]:
    """One row at a time, unpadded, full logits, log-softmax in float64."""
    found = []
    with torch.no_grad():
        for prompt, response in ROWS:
            logps = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
            found.append([float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(response)])
    return found


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    match kind:
        case "llama":
            return tiny_llama()
        case "llama, tied":
            return tiny_llama(tied=True)
        case "learned positions":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
            )
        case "sliding window":
            return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=3))
        case "scaled logits":
            return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
        case "capped logits":
            return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.0))
    raise ValueError(kind)


@pytest.mark.parametrize(
    ("kind", "splits"),
    [
        ("llama", True),
        ("llama, tied", True),
        ("learned positions", True),
        ("sliding window", True),
        ("scaled logits", False),
        ("capped logits", False),
    ],
)
def test_values_are_those_of_unpadded_full_logits(kind: str, splits: bool) -> None:
    model = model_of(kind).eval()
    assert head_splits(model) is splits
    for filler in (0, 17):
        ids, mask = padded(filler)
        logps = token_logps(model, ids, mask)
        assert logps.dtype == torch.float32
        assert (logps[~mask] == 0).all()
        for row, expected in enumerate(plain(model)):
            assert logps[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-5)


def test_gradient_is_that_of_full_logits() -> None:
    model = tiny_llama()
    ids, mask = padded()
    token_logps(model, ids, mask).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logps = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    (logps * mask[:, 1:]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_chunks_change_neither_value_nor_gradient() -> None:
    torch.manual_seed(0)
    head, targets = nn.Linear(8, 50, bias=True), torch.randint(50, (11,))
    states = torch.randn(11, 8, requires_grad=True)
    whole = head_logps(head, states, targets)
    whole_gradients = torch.autograd.grad(whole.square().sum(), [states, head.weight, head.bias])
    for elements in (1, 150, 10 * 50):
        parts = head_logps(head, states, targets, elements)
        torch.testing.assert_close(parts, whole)
        gradients = torch.autograd.grad(parts.square().sum(), [states, head.weight, head.bias])
        for ours, expected in zip(gradients, whole_gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_chunks_never_hold_more_logits_than_allowed() -> None:
    seen: list[int] = []
    head = nn.Linear(8, 50)
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    head_logps(head, torch.randn(11, 8), torch.randint(50, (11,)), elements=150)
    assert max(seen) == 150


def test_bfloat16_is_close_and_its_log_softmax_is_float32() -> None:
    model = tiny_llama()
    ids, mask = padded()
    exact, rounded = token_logps(model, ids, mask), token_logps(model, ids, mask, "bfloat16")
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    assert 0 < difference < 0.1


def test_no_response_token_at_all_gives_zeros() -> None:
    ids, mask = padded()
    assert token_logps(tiny_llama(), ids, torch.zeros_like(mask)).tolist() == torch.zeros(ids.shape).tolist()


def test_building_it_leaves_the_model_in_its_mode() -> None:
    model = tiny_llama().train()
    TokenLogps(model)
    assert model.training
