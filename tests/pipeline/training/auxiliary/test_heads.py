"""Masks, learned priors and values: what they start as, and what they are computed from."""

import pytest
import torch

from pipeline.training.auxiliary.heads import MaskHead, PriorHead, ValueHead, activation_mask


def states(layers: int = 2, rows: int = 3, width: int = 5, features: int = 8) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, features, generator=draw) for _ in range(layers)]


def normed(h: torch.Tensor) -> torch.Tensor:
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_masks_start_at_one_with_a_gradient_for_every_part() -> None:
    head = MaskHead(2, 8, dropout=0.0)
    mask = head(states())
    torch.testing.assert_close(mask, torch.ones(3, 5))
    (mask * torch.linspace(0, 1, 15).view(3, 5)).sum().backward()
    assert all(float(p.grad.abs().min()) > 0 for p in head.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in head.parameters())


def test_a_mask_is_the_formula_of_the_paper() -> None:
    head, hidden = MaskHead(2, 8), states()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    layers = [torch.relu(normed(h) @ w + b) for h, w, b in zip(hidden, head.weight, head.bias, strict=True)]
    expected = torch.relu(head.mix[0, 0] * layers[0] + head.mix[0, 1] * layers[1])
    torch.testing.assert_close(head(hidden), expected)
    assert bool((expected == 0).any()) and bool((expected > 0).any())


def test_dropout_of_masks_is_on_in_training_alone() -> None:
    torch.manual_seed(0)
    head = MaskHead(2, 8, dropout=0.5)
    assert bool((head(states()) == 0).any())
    torch.testing.assert_close(head.eval()(states()), torch.ones(3, 5))


def test_heads_refuse_other_hidden_states() -> None:
    with pytest.raises(ValueError, match="of 3 layers of width 8; the head is for 2 of width 8"):
        MaskHead(2, 8)(states(layers=3))
    with pytest.raises(ValueError, match="width 6; the head is for 2 of width 8"):
        PriorHead(2, 8)(states(features=6))


def test_a_learned_prior_starts_as_the_reference_and_takes_either_sign() -> None:
    head, hidden = PriorHead(2, 8, seed=3), states()
    assert torch.equal(head(hidden), torch.zeros(3, 5))
    head(hidden)[0, 0].backward()
    assert head.mix.grad is not None and float(head.mix.grad.abs().min()) > 0
    with torch.no_grad():
        head.mix.fill_(1.0)
    expected = sum(normed(h) @ w for h, w in zip(hidden, head.weight, strict=True))
    torch.testing.assert_close(head(hidden), expected)
    assert bool((expected < 0).any()) and bool((expected > 0).any())
    assert torch.equal(PriorHead(2, 8, seed=3).weight, head.weight)
    assert not torch.equal(PriorHead(2, 8, seed=4).weight, head.weight)


def test_values_start_at_zero_and_do_not_move_the_policy() -> None:
    head, hidden = ValueHead(8), states()[0][:, 0].requires_grad_()
    values = head(hidden)
    assert torch.equal(values, torch.zeros(3))
    (values - torch.tensor([1.0, 2.0, 3.0])).pow(2).sum().backward()
    assert hidden.grad is None
    assert head.linear.bias.grad is not None and float(head.linear.bias.grad) == pytest.approx(-12)


def sized(rows: list[list[float]], features: int = 4) -> torch.Tensor:
    """Hidden states of these sizes."""
    return torch.tensor(rows).unsqueeze(-1).expand(-1, -1, features).clone()


def test_the_activation_mask_is_the_mean_of_normalised_layers_rescaled() -> None:
    mask = torch.tensor([[False, True, True, True, False]])
    small, large = sized([[9.0, 1.0, 2.0, 3.0, 9.0]]), sized([[9.0, 500.0, 100.0, 300.0, 9.0]])
    torch.testing.assert_close(activation_mask([small], mask), torch.tensor([[0, 0, 0.5, 1, 0]]))
    # Normalised, the layers say (-a, 0, a) and (b, -b, 0): a layer's own scale does not count.
    a = 1.0 / (2 / 3) ** 0.5
    mean = torch.tensor([-a + a, 0 - a, a + 0])
    expected = (mean - mean.min()) / (mean.max() - mean.min())
    torch.testing.assert_close(activation_mask([small, large], mask)[0, 1:4], expected)
    torch.testing.assert_close(activation_mask([small, -1e3 * large], mask)[0, 1:4], expected)


def test_responses_are_normalised_one_by_one_and_padding_is_not_read() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    hidden = sized([[1.0, 2.0, 3.0], [7.0, 5.0, float("nan")]])
    torch.testing.assert_close(activation_mask([hidden], mask), torch.tensor([[0, 0.5, 1], [1, 0, 0]]))


@pytest.mark.parametrize("size", [1e-6, 0.1, 1e4])
def test_alike_tokens_count_in_full(size: float) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    found = activation_mask([sized([[size] * 3] * 2), sized([[size] * 3] * 2)], mask)
    assert torch.equal(found, mask.float())
