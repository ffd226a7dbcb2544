"""Terms beside the preference term."""

from torch import Tensor

from pipeline.losses.batch import Side
from pipeline.losses.masked import at_least_float32, masked_mean


def nll(side: Side) -> Tensor:
    """Negative log-likelihood of each response in nats per token, [B].

    The anchor of DPO+SFT (arXiv:2404.19733, equation 1) and, alone, supervised training.
    """
    return -masked_mean(at_least_float32(side.policy), side.mask)
