"""The prior ζ: what a response's log-probability is measured against (MI-DPO, arXiv:2501.01544).

DPO's prior is the reference policy; a loss without a reference has the prior ζ = 1.
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.losses.batch import Side
from pipeline.losses.masked import at_least_float32

Prior = Literal["none", "reference"]


def log_prior(side: Side, prior: Prior) -> Tensor:
    """log ζ of each token, [B, T].

    Raises:
        ValueError: the reference is asked for and the batch has none.
    """
    if prior == "none":
        return torch.zeros_like(at_least_float32(side.policy))
    if side.reference is None:
        raise ValueError("this loss needs reference log-probabilities (Side.reference)")
    return at_least_float32(side.reference).detach()
