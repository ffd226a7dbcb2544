"""Losses that were published for diffusion models, written out in their own units: m, the mean squared error."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.losses import PairBatch, Side, UnpairedBatch, load_preset


def side(errors: Tensor, reference: Tensor | None = None) -> Side:
    """Errors m as scores of one draw, in units of mean error: −m/2."""
    mask = torch.ones(len(errors), 1, dtype=torch.bool)
    return Side(
        policy=-errors[:, None] / 2, mask=mask, reference=None if reference is None else -reference[:, None] / 2
    )


def errors(seed: int, count: int = 6) -> Tensor:
    return 0.05 + torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_diffusion_kto_is_the_published_loss_at_twice_its_beta() -> None:
    m, m_ref = errors(1), errors(0)
    good = torch.tensor([True, False, True, True, False, True])
    beta = 3.0
    g = m_ref - m
    z0 = g.mean().clamp(min=0)
    assert float(z0) > 0, "of a batch in which z0 counts"
    sign = torch.where(good, 1.0, -1.0)
    expected = 1 - torch.sigmoid(sign * beta * (g - z0))
    loss = load_preset("diffusion_kto", beta=2 * beta)
    batch = UnpairedBatch(responses=side(m, m_ref), desirable=good)
    assert torch.allclose(loss(batch).per_pair, expected, atol=1e-12)
    # Of pairs: both sides are marked, and share one z0.
    pairs = PairBatch(chosen=side(m[:3], m_ref[:3]), rejected=side(m[3:], m_ref[3:]))
    both = 2 - torch.sigmoid(beta * (g[:3] - z0)) - torch.sigmoid(-beta * (g[3:] - z0))
    assert torch.allclose(loss(pairs).per_pair, both, atol=1e-12)


def test_the_reference_point_of_diffusion_kto_is_never_negative_and_asks_for_no_other_images() -> None:
    m, m_ref, good = errors(0), errors(1), torch.tensor([True, False, True, True, False, True])
    loss = load_preset("diffusion_kto", beta=4.0)
    assert not loss.needs.baseline and loss.needs.statistics and loss.needs.accepts_unpaired
    expected = 1 - torch.sigmoid(torch.where(good, 1.0, -1.0) * 2.0 * (m_ref - m))
    assert torch.allclose(loss(UnpairedBatch(responses=side(m, m_ref), desirable=good)).per_pair, expected, atol=1e-12)


def test_margin_po_is_the_published_loss() -> None:
    w, other = errors(0).requires_grad_(), errors(1).requires_grad_()
    x, y = w / 2, other / 2
    odds = x / (torch.exp(x) - 1) - y / (torch.exp(y) - 1)
    expected = w - 0.1 * logsigmoid(1000 * odds)
    found = load_preset("margin_po")(PairBatch(chosen=side(w), rejected=side(other))).per_pair
    assert torch.allclose(found, expected, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value.sum(), (w, other)) for value in (found, expected))
    assert all(torch.allclose(one, two, rtol=1e-6, atol=1e-9) for one, two in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("m", [0.0, 1e-6, 1e-3, 0.0199, 0.0201, 3.0, 400.0])
def test_the_function_of_margin_po_is_exact_and_its_slope_finite(m: float) -> None:
    """Near 0 by its series, and where e^n overflows."""
    given = torch.tensor([m], dtype=torch.float64, requires_grad=True)
    loss = load_preset("margin_po", beta=1.0, weight=1.0, nll=0.0)
    value = loss(PairBatch(chosen=side(given), rejected=side(torch.zeros(1, dtype=torch.float64)))).per_pair
    n = m / 2
    odds = 1.0 if n == 0 else n / math.expm1(n) if n < 80 else 0.0
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(1 - odds)), abs=1e-10)
    (slope,) = torch.autograd.grad(value.sum(), given)
    assert torch.isfinite(slope).all()
