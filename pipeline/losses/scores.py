"""The score of a response: s = Agg_t[ log π(y_t) − log ζ(y_t) ]."""

from typing import Literal

from torch import Tensor

from pipeline.losses.batch import Side
from pipeline.losses.masked import at_least_float32, masked_mean, masked_sum
from pipeline.losses.prior import Prior, log_prior

Aggregate = Literal["sum", "mean"]


def score(side: Side, prior: Prior, aggregate: Aggregate) -> Tensor:
    """s of each response, [B]: how much likelier it is under the policy than under the prior, in nats.

    ``mean`` divides by the number of response tokens.
    """
    ratio = at_least_float32(side.policy) - log_prior(side, prior)
    return masked_sum(ratio, side.mask) if aggregate == "sum" else masked_mean(ratio, side.mask)
