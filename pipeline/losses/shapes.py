"""The shape T: what becomes of a response's score before β."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.config.loss.components import AlphaShape, DivergenceShape, IdentityShape, PenaltyShape, PlainShape
from pipeline.config.loss.components import Shape as ShapeSettings
from pipeline.losses.masked import bounded_exp

# Of a mean log-probability; nearer to 0 the odds of the likelihood overflow.
LIKELIEST = -1e-6


def shaped(s: Tensor, shape: ShapeSettings, chosen: bool) -> Tensor:
    """T(s) of chosen or of rejected responses, [B]. Finite for any finite s (exponentials go on as tangents)."""
    match shape:
        case IdentityShape():
            return s
        case DivergenceShape():
            return _divergence(s, shape)
        case AlphaShape():
            return s if shape.alpha == 0 else (1 - bounded_exp(-shape.alpha * s)) / shape.alpha
        case PenaltyShape():
            return s - shape.penalty * torch.relu(-s) if chosen else s
        case PlainShape(kind="log_odds"):
            return _log_odds(s)
        case PlainShape(kind="exp"):
            return bounded_exp(s)
        case PlainShape(kind="relu_rejected"):
            # At s = 0, where every run starts, the gradient has to pass: clamp would give the rejected side none.
            return s if chosen else torch.where(s >= 0, s, torch.zeros_like(s))
        case _:
            raise ValueError(f"shape: {shape.kind} is not known")


def _divergence(s: Tensor, shape: DivergenceShape) -> Tensor:
    """f′(e^s), constants dropped (f-DPO, arXiv:2309.16240, table 1)."""
    match shape.divergence:
        case "reverse_kl":
            return s
        case "forward_kl":
            return -bounded_exp(-s)
        case "js":
            # log(2u/(1 + u)), whose log 2 cancels in differences but belongs to the score.
            return torch.log(torch.full_like(s, 2.0)) - softplus(-s)
        case "alpha":
            return (1 - bounded_exp(-shape.alpha * s)) / shape.alpha


def _log_odds(s: Tensor) -> Tensor:
    """log p/(1 − p) of the likelihood p = e^s."""
    below = s.clamp(max=LIKELIEST)
    return below - torch.log(-torch.expm1(below))
