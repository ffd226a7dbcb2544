"""The link of Mallows-φ: the probability that the better of two responses is ranked first (arXiv:2405.14953).

    g_φ(s) = (1 − sgn s)/2 + sgn(s) [ (|s|+1)/(1 − φ^(|s|+1)) − |s|/(1 − φ^|s|) ],   f(s) = −log g_φ(s)

g_φ(s) + g_φ(−s) = 1, but g_φ jumps at 0. Departs from the paper in how the jump is removed: the log-odds of g_φ, an
odd function, go on inside |s| < ``smoothing`` as the odd cubic with the same value and slope at the border.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# At φ = 1 (no agreement at all) g_φ is 1/2 everywhere; at φ = 0 it is a step.
SMALLEST, LARGEST = 1e-3, 50.0


def mallows_phi(s: Tensor, dispersion: Tensor, smoothing: float) -> Tensor:
    """−log g_φ(s), φ = e^−d, finite for any finite s.

    Args:
        s: [B] scaled differences of scores.
        dispersion: [B] d ≥ 0 of each pair, kept within 0.001 and 50.
        smoothing: half-width of the neighbourhood of 0 that is made smooth.
    """
    given = s.dtype
    # The differences below lose digits where d is small; there are only B of them.
    s, d = s.double(), dispersion.detach().double().clamp(SMALLEST, LARGEST)
    border = torch.full_like(s, smoothing)
    value, slope = _log_odds(border, d), _slope(border, d)
    # c1 x + c3 x³ with the border's value and slope.
    cubic = (slope * smoothing - value) / (2 * smoothing**3)
    straight = value / smoothing - cubic * smoothing**2
    inside = straight * s + cubic * s**3
    outside = torch.sign(s) * _log_odds(s.abs().clamp(min=smoothing), d)
    return -logsigmoid(torch.where(s.abs() < smoothing, inside, outside)).to(given)


def _log_odds(n: Tensor, d: Tensor) -> Tensor:
    """log g/(1 − g) at n > 0, with 1 − g = φ^n [n (1 − φ) − φ (1 − φ^n)] / [(1 − φ^(n+1)) (1 − φ^n)] in closed form."""
    phi, power = (-d).exp(), (-n * d).exp()
    losing = -n * d + (n * -torch.expm1(-d) + phi * torch.expm1(-n * d)).log()
    losing = losing - torch.log1p(-power * phi) - torch.log(-torch.expm1(-n * d))
    return torch.log1p(-losing.exp()) - losing


def _slope(n: Tensor, d: Tensor) -> Tensor:
    """The derivative of ``_log_odds`` with respect to n, without a graph of its own."""
    with torch.enable_grad():
        place = n.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_log_odds(place, d.detach()).sum(), place)
    return slope
