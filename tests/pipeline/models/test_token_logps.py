"""Log-probabilities of response tokens against plain forward passes of transformers."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from pipeline.config import Lora
from pipeline.errors import RunError
from pipeline.models.output_head import output_head
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter
from pipeline.models.weights.weight_format import Precision
from tests.support.tiny_training import tiny_llama

ROWS = [([5, 7, 9], [11, 13, 2]), ([4], [6]), ([8, 3], [10, 12, 14, 16, 18, 2])]
SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.3}


class Halved(LlamaForCausalLM):
    """Makes logits in a way that no configuration tells."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits = output.logits / 2
        return output


def token_logps(model: PreTrainedModel, ids: Tensor, mask: Tensor, dtype: Precision = "float32") -> Tensor:
    policy: Tensor = TokenLogps(model, dtype)(ids, mask).policy
    return policy


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
        case "divided logits":
            return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
        case "multiplied logits":
            return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=4.0))
        case "capped logits":
            return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.0))
        case "unknown logits":
            return Halved(LlamaConfig(**SMALL))
    raise ValueError(kind)


@pytest.mark.parametrize(
    ("kind", "splits"),
    [
        ("llama", True),
        ("llama, tied", True),
        ("learned positions", True),
        ("sliding window", True),
        ("divided logits", True),
        ("multiplied logits", True),
        ("capped logits", True),
        ("unknown logits", False),
    ],
)
def test_values_are_those_of_unpadded_full_logits(kind: str, splits: bool) -> None:
    model = model_of(kind).eval()
    assert (output_head(model) is not None) is splits
    for filler in (0, 17):
        ids, mask = padded(filler)
        logps = token_logps(model, ids, mask)
        assert logps.dtype == torch.float32
        assert (logps[~mask] == 0).all()
        for row, expected in enumerate(plain(model)):
            assert logps[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_is_not_wanted_is_not_there() -> None:
    ids, mask = padded()
    facts = TokenLogps(tiny_llama(), reference_model=tiny_llama())(ids, mask)
    assert {f.name for f in fields(facts) if getattr(facts, f.name) is not None} == {"policy"}
    layers = TokenLogps(tiny_llama(), wants=frozenset({"reference_hidden"}), reference_model=tiny_llama())(ids, mask)
    assert (layers.kl, layers.hidden) == (None, None)


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


def softmax_rows(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """Log-softmax of the whole vocabulary at each response token, of one unpadded row."""
    rows: Tensor = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return rows[len(prompt) - 1 : -1]


@pytest.mark.parametrize("kind", ["llama", "capped logits", "unknown logits"])
@pytest.mark.parametrize("elements", [2**26, 3 * 40])
def test_statistics_and_their_gradients_are_those_of_full_logits(kind: str, elements: int) -> None:
    model = model_of(kind).eval()
    torch.manual_seed(1)
    reference = model_of(kind).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids, mask = padded()
    wants = frozenset({"kl", "collision", "entropy"})
    facts = TokenLogps(model, wants=wants, reference_model=reference, chunk_elements=elements)(ids, mask)
    (facts.policy + 2 * facts.kl).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = torch.zeros(())
    for row, (prompt, response) in enumerate(ROWS):
        p = softmax_rows(model, prompt, response)
        q = softmax_rows(reference, prompt, response).detach()
        kl = (q.exp() * (q - p)).sum(-1)
        assert kl.min() > 1e-4
        total = total + p.gather(1, torch.tensor(response)[:, None]).sum() + 2 * kl.sum()
        torch.testing.assert_close(facts.kl[row][mask[row]], kl, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(facts.collision[row][mask[row]], p.exp().square().sum(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(facts.entropy[row][mask[row]], -(p.exp() * p).sum(-1), rtol=1e-5, atol=1e-5)
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)
    for values in (facts.kl, facts.collision, facts.entropy):
        assert (values[~mask] == 0).all()
    assert not facts.collision.requires_grad
    assert not facts.entropy.requires_grad
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("kind", ["llama", "learned positions", "capped logits", "unknown logits"])
def test_hidden_states_are_those_that_predict_each_token(kind: str) -> None:
    model, reference = model_of(kind).eval(), model_of(kind).eval()
    wants = frozenset({"hidden", "reference_hidden"})
    ids, mask = padded()
    facts = TokenLogps(model, wants=wants, reference_model=reference)(ids, mask)
    assert facts.hidden.requires_grad
    assert len(facts.reference_hidden) == 2
    # A place for each token of the longest response, and none for the prompts.
    assert facts.hidden.shape[1] == max(len(response) for _, response in ROWS)
    last = TokenLogps(model, wants=frozenset({"reference_last_hidden"}), reference_model=reference)(ids, mask)
    assert len(last.reference_hidden) == 1
    for row, (prompt, response) in enumerate(ROWS):
        with torch.no_grad():
            layers = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
        width = len(prompt + response)
        pairs = [(facts.hidden, layers[-1]), (last.reference_hidden[0], layers[-1])]
        pairs += list(zip(facts.reference_hidden, layers[1:], strict=True))
        for found, expected in pairs:
            states = expected[0, len(prompt) - 1 : width - 1]
            torch.testing.assert_close(found[row, : len(response)].detach(), states, rtol=1e-4, atol=1e-5)
            assert (found[row, len(response) :] == 0).all()
    assert not any(states.requires_grad for states in facts.reference_hidden)


def test_the_reference_is_no_part_of_the_module() -> None:
    reference = tiny_llama(seed=1, dropout=0.5).train()
    module = TokenLogps(tiny_llama(), wants=frozenset({"kl"}), reference_model=reference)
    assert not reference.training
    assert len(list(module.parameters())) == len(list(reference.parameters()))
    module.train()
    assert not reference.training


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    ids, mask = padded()
    reference = MistralForCausalLM(MistralConfig(**{**SMALL, "vocab_size": 48}))
    with pytest.raises(RunError, match="policy has 40 tokens, the reference 48"):
        TokenLogps(tiny_llama(), wants=frozenset({"kl"}), reference_model=reference)(ids, mask)


def test_what_is_wanted_of_a_reference_needs_one() -> None:
    with pytest.raises(ValueError, match="kl, reference_hidden: no reference model"):
        TokenLogps(tiny_llama(), wants=frozenset({"kl", "reference_hidden"}))


def test_statistics_in_bfloat16_are_close() -> None:
    model, reference = tiny_llama(seed=0), tiny_llama(seed=1)
    ids, mask = padded()
    wants = frozenset({"kl", "collision", "entropy"})
    exact, rounded = (TokenLogps(model, d, wants, reference)(ids, mask) for d in ("float32", "bfloat16"))
    for name in ("kl", "collision", "entropy"):
        value, close = getattr(exact, name), getattr(rounded, name)
        assert close.dtype == torch.float32
        assert 0 < (value - close).abs().max() < 0.1


def test_the_reference_of_an_adapter_is_its_base() -> None:
    model = add_adapter(tiny_llama(), Lora(rank=4, dropout=0.5), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    model.train()
    ids, mask = padded()
    wants = frozenset({"kl", "reference_hidden"})
    facts = []
    for reference in (model, tiny_llama()):
        module = TokenLogps(model, wants=wants, reference_model=reference)
        # Of the adapter's dropout.
        torch.manual_seed(0)
        facts.append(module(ids, mask))
    inside, beside = facts
    assert model.training
    torch.testing.assert_close(inside.policy, beside.policy)
    torch.testing.assert_close(inside.kl, beside.kl)
    torch.testing.assert_close(inside.reference_hidden, beside.reference_hidden)
    assert inside.kl[mask].min() > 1e-3
    inside.kl.sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    beside.kl.sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    torch.testing.assert_close(ours, expected)


def test_a_policy_without_adapter_cannot_be_its_own_reference() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="no adapter to switch off"):
        TokenLogps(model, wants=frozenset({"kl"}), reference_model=model)
