"""The settings of a loss: which component stands at each place of the formula. Torch-free.

The formula is in ``loss``; a preset file in configs/loss/ is one ``Composition``.
"""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Closed


class Composition(Closed):
    """One loss as data. What a preset leaves out has the value that drops it from the formula."""

    summary: str = Field(description="one line")
    formula: str = Field(description="in the notation of the paper")
    citation: str = Field(description="where it was published")
    prior: Literal["none", "reference"] = Field(
        "none", description="ζ, what the log-probabilities are measured against"
    )
    aggregate: Literal["sum", "mean"] = Field("sum", description="of tokens into the score s of a response")
    beta: float = Field(1.0, gt=0, description="β, scale of the difference of scores")
    margin: float = Field(0.0, description="m, what the scaled difference must exceed")
    link: Literal["none", "logistic"] = Field("none", description="f; none: the loss has no preference term")
    nll: float = Field(0.0, ge=0, description="weight of the chosen response's negative log-likelihood per token")

    @model_validator(mode="after")
    def _has_a_term(self) -> "Composition":
        if self.link == "none" and self.nll == 0:
            raise ValueError("neither a link nor a weight for nll: the loss would be 0")
        return self
