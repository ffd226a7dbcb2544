"""The settings of the margin of a loss: what the scaled difference of two scores must exceed. Torch-free."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Closed
from pipeline.config.loss.components import BY_NAME


class NoMargin(Closed):
    """m = 0."""

    kind: Literal["none"] = "none"


class ConstantMargin(Closed):
    """m = γ."""

    kind: Literal["constant"] = "constant"
    gamma: float = Field(description="m itself")


class LengthMargin(Closed):
    """m = −α (|y_w| − |y_l|) (R-DPO)."""

    kind: Literal["length"] = "length"
    alpha: float = Field(0.01, ge=0)


class RewardMargin(Closed):
    """m = η (r_w − r_l) (RPO)."""

    kind: Literal["rewards"] = "rewards"
    eta: float = Field(1.0, gt=0)


class WinMargin(Closed):
    """m = P(w beats l) − ½, or P_w − P_l against the average of the policy's answers: soft targets of IPO."""

    kind: Literal["wins"] = "wins"
    against: Literal["other", "average"] = Field("other", description="who both responses are compared with")


class HomeMargin(Closed):
    """m = β d (1 − v) h, v the weight of the reference in the prior (RainbowPO)."""

    kind: Literal["home"] = "home"
    home: float = Field(0.1, description="h, nats")


class GapMargin(Closed):
    """m = β (γ + α · the normalised difference of mean log-ratios) (α-DPO)."""

    kind: Literal["gap"] = "gap"
    gamma: float = Field(0.4, ge=0)
    alpha: float = Field(0.1, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of the running mean and deviation")


class SortedMargin(Closed):
    """Both samples are sorted over the global batch, and compared rank by rank (AOT, arXiv:2406.05882).

    pairs: the policy's differences chosen − rejected with the reference's; responses: the log-ratios of the chosen
    responses with those of the rejected ones.
    """

    kind: Literal["sorted"] = "sorted"
    compare: Literal["pairs", "responses"] = Field("pairs", description="what is sorted")


def _margin(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "constant", "gamma": value} if number else value


Margin = Annotated[
    NoMargin | ConstantMargin | LengthMargin | RewardMargin | WinMargin | SortedMargin | HomeMargin | GapMargin,
    Field(discriminator="kind"),
    BY_NAME,
    BeforeValidator(_margin),
]
