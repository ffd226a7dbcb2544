"""Training of a reward model from pairs."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import OPERATIONAL, Closed
from pipeline.config.data import FileData, HeldOut
from pipeline.config.loss.components import Margin, NoMargin
from pipeline.config.loss.composition import Composition
from pipeline.config.policy import PretrainedPolicy
from pipeline.config.training import Optimisation

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class RewardTraining(Optimisation):
    """Optimisation of a reward model."""

    learning_rate: float = Field(1e-5, gt=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    checkpoint_every: int = Field(
        100, ge=0, description="optimiser steps between checkpoints; 0: none", json_schema_extra=OPERATIONAL
    )


class RewardModelConfig(Closed):
    """A reward model trained on pairs: the cross-entropy of their labels and P(chosen wins) = σ(r_w − r_l − m)."""

    name: str = Field(pattern=NAME, description="folder name under runs/")
    seed: int = Field(0, ge=0)
    model: PretrainedPolicy = Field(
        description="a causal language model, which gets a new head of one output, or a classifier with one output"
    )
    pairs: FileData = Field(description="pairs, or groups of scored responses, each two of which are then a pair")
    held_out: HeldOut = HeldOut()
    max_tokens: int = Field(2048, ge=8, description="pairs with a longer conversation are dropped with a count")
    ties: Literal["drop", "half", "rao_kupper"] = Field(
        "drop",
        description="pairs whose soft label is ½, or whose scores are equal. half: cross-entropy with ½, which pulls "
        "both rewards together; rao_kupper: the likelihood of a tie (Rao & Kupper 1967)",
    )
    eta: float | None = Field(
        None,
        gt=0,
        description="rao_kupper: η = log θ; default: that at which responses of equal reward tie as often as the "
        "training pairs do, log((1 + t)/(1 − t))",
    )
    margin: Margin = Field(
        NoMargin(),
        description="m, by which the better reward must be above the other: none, a number, or rewards: η times the "
        "difference of the pair's scores (Llama 2, arXiv:2307.09288, equation 2)",
    )
    training: RewardTraining = RewardTraining()

    @field_validator("name")
    @classmethod
    def _no_dots(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("must not contain '..'")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "RewardModelConfig":
        if self.eta is not None and self.ties != "rao_kupper":
            raise ValueError("eta: only read with ties: rao_kupper")
        if self.margin.kind not in ("none", "constant", "rewards"):
            raise ValueError(f"margin: {self.margin.kind} reads log-probabilities; none, a number or rewards")
        if self.ties == "rao_kupper" and self.margin.kind != "none":
            raise ValueError(f"margin: {self.margin.kind}: rao_kupper has its own margin, eta; only none")
        return self

    def composition(self, eta: float | None) -> Composition:
        """The loss, of which the score of a response is its reward; ``eta``: None for Bradley and Terry's."""
        link = "logistic" if eta is None else {"kind": "rao_kupper", "eta": eta}
        return Composition.model_validate({"link": link, "margin": self.margin})
