"""The link f: from a margin z to a loss, decreasing at 0 (GPO, arXiv:2402.05749, table 1)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import logsigmoid

Link = Callable[[Tensor], Tensor]


def logistic(z: Tensor) -> Tensor:
    """f(z) = log(1 + exp(−z)), the Bradley-Terry likelihood. Exact for any finite z.

    >>> import torch
    >>> logistic(torch.tensor([0.0, -1e4]))
    tensor([6.9315e-01, 1.0000e+04])
    """
    return -logsigmoid(z)


LINKS: Mapping[str, Link] = MappingProxyType({"logistic": logistic})
