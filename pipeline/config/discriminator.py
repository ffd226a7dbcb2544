"""A discriminator that is trained while the policy is, on preferences that are bought (D2PO, arXiv:2405.01511)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import OPERATIONAL, Closed
from pipeline.config.reward_model import RewardTraining


class Gate(Closed):
    """When a version of the discriminator may label."""

    accuracy: float = Field(
        0.6, ge=0.5, le=1, description="least share of held-out gold comparisons that it ranks rightly"
    )
    held_out: float = Field(
        0.25, gt=0, lt=1, description="share of prompts whose gold is kept from every refit, to measure on"
    )
    comparisons: int = Field(16, ge=1, description="held-out comparisons that it takes to tell; with fewer none passes")


class Discriminator(Closed):
    """Gold preferences are bought for a few pairs of responses; what learns from them labels the rest.

    The controls of a study are values of ``silver``: ``static`` is a reward model trained once, ``self`` the policy's
    own implicit reward, ``none`` training on gold alone (with the section ``replay``: gold again and again). That one
    setting is all that changes: ``self`` and ``none`` train no discriminator, and pass over what says how.
    """

    silver: Literal["online", "static", "self", "none"] = Field(
        "online",
        description="who labels what no gold was bought for. online: the discriminator, refitted each round; static: "
        "the discriminator of round 1, for which the gold of all rounds is bought; self: β log π/π_start of the "
        "policy; none: nobody, rounds train on gold alone",
    )
    gold: Literal["scorer", "people"] = Field(
        "scorer", description="who answers: the section scorer, or people, through files in the run folder"
    )
    budget: int = Field(128, ge=1, description="gold comparisons a round; never more than one a prompt")
    select: Literal["random", "uncertain", "disagreement"] = Field(
        "random",
        description="which are bought: by lot; those that the discriminator is least sure of; those on whose margin "
        "its members differ most. Where there is no discriminator yet: by lot",
    )
    members: int = Field(1, ge=1, le=16, description="discriminators trained side by side; the mean of their scores")
    start: str | None = Field(
        None,
        min_length=1,
        description="model folder or hub name, a language model or a classifier of one output, that the first version "
        "is trained from; default: the start policy",
    )
    max_tokens: int = Field(2048, ge=8, description="of a conversation; comparisons with a longer one teach nothing")
    gate: Gate = Gate()
    training: RewardTraining = RewardTraining(epochs=3)
    wait: Annotated[float, Field(ge=0)] | None = Field(
        0.0,
        description="people: seconds to wait for answers; then the run pauses (exit code 3, the same command goes on); "
        "null: as long as it takes",
        json_schema_extra=OPERATIONAL,
    )
    poll: float = Field(
        2.0, gt=0, description="people: seconds between looks for answers", json_schema_extra=OPERATIONAL
    )

    @property
    def trains(self) -> bool:
        """Whether there is a model to train."""
        return self.silver in ("online", "static")

    @model_validator(mode="after")
    def _fits(self) -> "Discriminator":
        if self.select == "disagreement" and self.members < 2:
            raise ValueError(f"select: disagreement needs at least 2 members, not {self.members}")
        if self.select != "random" and self.silver != "online":
            raise ValueError(f"select: {self.select} asks a discriminator that is refitted; silver is {self.silver}")
        if self.trains and self.budget * self.gate.held_out < self.gate.comparisons:
            raise ValueError(
                f"gate.comparisons: {self.gate.comparisons}, but of {self.budget} comparisons in the first round about "
                f"{self.budget * self.gate.held_out:.0f} are held out, so no version could pass"
            )
        return self
