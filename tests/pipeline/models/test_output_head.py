"""The chunked output head against softmaxes that are held at once."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM

from pipeline.config import Lora
from pipeline.models.output_head import HeadInput, output_head, softmaxes
from pipeline.models.weights.lora import add_adapter, plain_model
from tests.support.tiny_training import tiny_llama

ROWS, WIDTH, VOCABULARY = 11, 8, 50
CHUNKS = [1, 3 * VOCABULARY, 10 * VOCABULARY, 2**26]


def source(seed: int) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, VOCABULARY), torch.randn(ROWS, WIDTH, requires_grad=True)


@pytest.mark.parametrize("elements", CHUNKS)
def test_chunks_change_neither_value_nor_gradient(elements: int) -> None:
    (head, states), (their_head, their_states) = source(0), source(1)
    targets = torch.randint(VOCABULARY, (ROWS,))
    found = softmaxes(
        HeadInput(head, states),
        targets,
        VOCABULARY,
        reference=HeadInput(their_head, their_states.detach()),
        collision=True,
        entropy=True,
        elements=elements,
    )
    p, q = head(states).log_softmax(-1), their_head(their_states).log_softmax(-1).detach()
    logps, kl = p[range(ROWS), targets], (q.exp() * (q - p)).sum(-1)
    assert found.kl is not None
    torch.testing.assert_close(found.logps, logps)
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.collision, p.exp().square().sum(-1).detach())
    torch.testing.assert_close(found.entropy, -(p.exp() * p).sum(-1).detach())
    parameters = [states, head.weight, head.bias]
    ours = torch.autograd.grad((found.logps.square() + found.kl.square()).sum(), parameters)
    expected = torch.autograd.grad((logps.square() + kl.square()).sum(), parameters)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert their_head.weight.grad is None


@pytest.mark.parametrize("elements", CHUNKS)
def test_log_probabilities_alone_are_the_same_in_chunks(elements: int) -> None:
    head, states = source(0)
    targets = torch.randint(VOCABULARY, (ROWS,))
    found = softmaxes(HeadInput(head, states), targets, VOCABULARY, elements=elements)
    expected = head(states).log_softmax(-1)[range(ROWS), targets]
    torch.testing.assert_close(found.logps, expected)
    assert (found.kl, found.collision, found.entropy) == (None, None, None)
    ours = torch.autograd.grad(found.logps.square().sum(), [states, head.weight])
    theirs = torch.autograd.grad(expected.square().sum(), [states, head.weight])
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_one_statistic_alone_is_the_same() -> None:
    head, states = source(0)
    targets = torch.randint(VOCABULARY, (ROWS,))
    both = softmaxes(HeadInput(head, states), targets, VOCABULARY, collision=True, entropy=True)
    only = softmaxes(HeadInput(head, states), targets, VOCABULARY, entropy=True, elements=150)
    assert only.collision is None
    torch.testing.assert_close(only.entropy, both.entropy)


def test_chunks_never_hold_more_logits_than_allowed() -> None:
    seen: list[int] = []
    head, states = source(0)
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    found = softmaxes(
        HeadInput(head, states), torch.randint(VOCABULARY, (ROWS,)), VOCABULARY, collision=True, elements=150
    )
    found.logps.sum().backward()
    assert max(seen) == 150


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    (head, states), (their_head, their_states) = source(0), source(1)
    theirs = HeadInput(their_head, their_states.detach())
    targets = torch.randint(VOCABULARY, (ROWS,))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        softmaxes(HeadInput(head, states), targets, VOCABULARY, reference=theirs, collision=True, elements=150)
        assert max(kept, default=0) < 3 * VOCABULARY
        softmaxes(HeadInput(head, states), targets, VOCABULARY, reference=theirs)
        assert max(kept) == ROWS * VOCABULARY


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    head, states = source(0)
    held: list[Tensor] = []

    def kept(given: Tensor) -> Tensor:
        held.append(head(given))
        return held[-1]

    found = softmaxes(HeadInput(kept, states), torch.zeros(ROWS, dtype=torch.int64), VOCABULARY)
    p = held[0].detach().softmax(-1)
    found.logps.sum().backward()
    torch.testing.assert_close(held[0].detach(), torch.eye(VOCABULARY)[[0] * ROWS] - p)


def test_a_second_backward_pass_is_refused() -> None:
    head, states = source(0)
    found = softmaxes(HeadInput(head, states), torch.zeros(ROWS, dtype=torch.int64), VOCABULARY)
    found.logps.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.logps.sum().backward()


def test_no_state_at_all_gives_no_values() -> None:
    head, states = source(0)
    found = softmaxes(HeadInput(head, states[:0]), torch.zeros(0, dtype=torch.long), VOCABULARY, entropy=True)
    assert (found.logps.shape, found.entropy.shape) == ((0,), (0,))


def test_log_softmax_of_half_precision_logits_is_float32() -> None:
    head, states = source(0)
    low = head.to(torch.bfloat16)
    found = softmaxes(
        HeadInput(low, states.to(torch.bfloat16)), torch.zeros(ROWS, dtype=torch.long), VOCABULARY, entropy=True
    )
    assert found.logps.dtype == torch.float32
    exact = low(states.to(torch.bfloat16)).float().log_softmax(-1)[:, 0]
    torch.testing.assert_close(found.logps, exact)


def test_scaled_logits_are_known_in_half_precision() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    tiny_granite = GraniteConfig(**sizes, **heads, logits_scaling=6.0, initializer_range=0.3)
    model = GraniteForCausalLM(tiny_granite).to(torch.bfloat16)
    head = output_head(model)
    assert head is not None
    assert head.factor == pytest.approx(1 / 6)


def test_a_cap_that_is_not_known_is_not_trusted_to_show_itself() -> None:
    model = tiny_llama()
    model.config.some_logit_softcap = 30.0
    assert output_head(model) is None


def test_a_head_with_an_adapter_is_still_the_head() -> None:
    model = add_adapter(tiny_llama(), Lora(rank=2, target_modules=("q_proj", "lm_head")), seed=0)
    head = output_head(plain_model(model))
    assert head is not None and head.linear is plain_model(model).get_output_embeddings()
