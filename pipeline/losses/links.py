"""The link f, which turns a margin z into a loss, decreasing at 0 (GPO, arXiv:2402.05749, table 1, and others).

Slopes at 0 differ (logistic −1/2, exponential −1, square −2 ...), so tune β again after changing the link.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pipeline.config.loss.terms import DiscoLink, FocalLink, HingeLink, MallowsPhiLink, PlainLink, RaoKupperLink
from pipeline.config.loss.terms import Link as LinkSettings
from pipeline.losses.batch import bounded_exp

# At φ = 1 (no agreement at all) g_φ is 1/2 everywhere; at φ = 0 it is a step.
SMALLEST, LARGEST = 1e-3, 50.0


def mallows_phi(s: Tensor, dispersion: Tensor, smoothing: float) -> Tensor:
    """−log g_φ(s), φ = e^−d, finite for any finite s.

    Args:
        s: [B] scaled differences of scores.
        dispersion: [B] d ≥ 0 of each pair, kept within 0.001 and 50.
        smoothing: half-width of the smoothed neighbourhood of 0.
    """
    given = s.dtype
    # In float64, since the differences below lose digits where d is small; there are only B of them.
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


LinkFunction = Callable[[Tensor], Tensor]


def logistic(z: Tensor) -> Tensor:
    """f(z) = log(1 + e^−z), the Bradley-Terry likelihood. Exact for any finite z.

    >>> logistic(torch.tensor([0.0, -1e4]))
    tensor([6.9315e-01, 1.0000e+04])
    """
    return -logsigmoid(z)


def ipo(z: Tensor) -> Tensor:
    """f(z) = (z − ½)²; IPO (arXiv:2310.12036, equation 17) is f(τ D)/τ²."""
    return (z - 0.5).square()


def square(z: Tensor) -> Tensor:
    """f(z) = (1 − z)²."""
    return (1 - z).square()


def squared_error(z: Tensor) -> Tensor:
    """f(z) = z², for a margin that is the distance from a target."""
    return z.square()


def exponential(z: Tensor) -> Tensor:
    """f(z) = e^−z; below z = −30 its tangent."""
    return bounded_exp(-z)


def truncated_quadratic(z: Tensor) -> Tensor:
    """f(z) = max(0, 1 − z)²."""
    return (1 - z).clamp(min=0).square()


def savage(z: Tensor) -> Tensor:
    """f(z) = 1/(1 + e^z)². Convex only above z = −ln 2; pairs far on the wrong side have no gradient."""
    return torch.sigmoid(-z).square()


def _sigmoid(z: Tensor) -> Tensor:
    """f(z) = σ(−z) (KTO, APO-zero)."""
    return torch.sigmoid(-z)


def linear(z: Tensor) -> Tensor:
    """f(z) = −z."""
    return -z


def cauchy(z: Tensor) -> Tensor:
    """f(z) = −log(½ + arctan(z)/π) (RainbowPO's code)."""
    # ½ + arctan(z)/π loses all digits at z far below 0; the angle of (−z, 1) is the same number.
    return -(torch.atan2(torch.ones_like(z), -z) / math.pi).log()


def hinge(z: Tensor, delta: float = 1.0) -> Tensor:
    """f(z) = max(0, δ − z); at the kink the slope is −1."""
    return torch.where(z <= delta, delta - z, torch.zeros_like(z))


def focal(z: Tensor, gamma: float) -> Tensor:
    """f(z) = −σ(z)^γ log σ(z) (FocalPO, arXiv:2501.06645): pairs on the wrong side count less."""
    likelihood = logsigmoid(z)
    return -(gamma * likelihood).exp() * likelihood


def disco(z: Tensor, tau: float) -> Tensor:
    """f(z) = (1 − s) log(1 + e^−z) + s e^−z with s = σ(z/τ) (DiscoPOP, arXiv:2406.08414, equation 5)."""
    # s e^−z = e^(log σ(z/τ) − z), which is small where e^−z alone would overflow.
    share = torch.sigmoid(z / tau)
    return (1 - share) * logistic(z) + bounded_exp(logsigmoid(z / tau) - z)


def reverse_kl(z: Tensor, label_logit: Tensor) -> Tensor:
    """f(z) = KL(Bernoulli(σ(z)) ‖ Bernoulli(p)), p = σ(``label_logit``) (EXO, arXiv:2402.00856)."""
    towards = torch.sigmoid(z) * (logsigmoid(z) - logsigmoid(label_logit))
    return towards + torch.sigmoid(-z) * (logsigmoid(-z) - logsigmoid(-label_logit))


def rao_kupper(z: Tensor, label: Tensor, eta: float) -> Tensor:
    """Negative log-likelihood of Rao & Kupper's model (J. Am. Stat. Assoc. 62, 1967), η = log θ.

    P(chosen wins) = σ(z − η), P(rejected wins) = σ(−z − η), P(tie) = (e^2η − 1) σ(z − η) σ(−z − η). A ``label`` p of
    exactly ½ is a tie; any other is the probability that chosen wins, without ties, as in cross-entropy.

    >>> z, eta = torch.tensor([0.7, 0.7, 0.7]), 0.5
    >>> (-rao_kupper(z, torch.tensor([1.0, 0.5, 0.0]), eta)).exp().sum()
    tensor(1.)
    """
    tie = label == 0.5
    won, lost = (torch.where(tie, torch.ones_like(label), p) for p in (label, 1 - label))
    apart = won * softplus(eta - z) + lost * softplus(eta + z)
    return apart - tie.to(z.dtype) * math.log(math.expm1(2 * eta))


LINKS: Mapping[str, LinkFunction] = MappingProxyType(
    {
        "logistic": logistic,
        "ipo": ipo,
        "square": square,
        "squared_error": squared_error,
        "exponential": exponential,
        "truncated_quadratic": truncated_quadratic,
        "savage": savage,
        "sigmoid": _sigmoid,
        "linear": linear,
        "cauchy": cauchy,
    }
)


def make_link(
    settings: LinkSettings,
    *,
    dispersion: Tensor | None = None,
    label_logit: Tensor | None = None,
    label: Tensor | None = None,
) -> LinkFunction:
    """f with its settings.

    Args:
        settings: any link except ``none``.
        dispersion: [B] d of each pair, for ``mallows_phi``.
        label_logit: [B] log p/(1 − p) of each pair's label, for ``reverse_kl``.
        label: [B] p of each pair, for ``rao_kupper``; None: 1.

    Raises:
        ValueError: the link is ``none``, or an input that it reads is missing.
    """
    match settings:
        case HingeLink():
            return lambda z: hinge(z, settings.delta)
        case FocalLink():
            return lambda z: focal(z, settings.gamma)
        case DiscoLink():
            return lambda z: disco(z, settings.tau)
        case MallowsPhiLink():
            if dispersion is None:
                raise ValueError("this loss needs the dispersion of each pair (PairBatch.dispersion)")
            return lambda z: mallows_phi(z, dispersion, settings.smoothing)
        case RaoKupperLink():
            return lambda z: rao_kupper(z, torch.ones_like(z) if label is None else label.to(z.dtype), settings.eta)
        case PlainLink(kind="reverse_kl"):
            if label_logit is None:
                raise ValueError("the link reverse_kl needs a label strictly between 0 and 1")
            return lambda z: reverse_kl(z, label_logit)
        case PlainLink(kind="none"):
            raise ValueError("link: none is not a function")
        case PlainLink():
            return LINKS[settings.kind]


def log_odds_of(p: Tensor) -> Tensor:
    """log p/(1 − p); infinite at 0 and 1."""
    return p.log() - torch.log1p(-p)


def entropy_of(logit: Tensor) -> Tensor:
    """Entropy in nats of a Bernoulli variable with log-odds ``logit``, 0 in both limits."""
    p = torch.sigmoid(logit)
    return p * softplus(-logit) + (1 - p) * softplus(logit)
