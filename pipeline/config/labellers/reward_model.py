"""Reward models trained on pairs, and the discriminator of a run."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.data.limits import OF_TOKENS, Limits
from pipeline.config.data.mixture import usual_source
from pipeline.config.data.sources import HeldOut, PairData
from pipeline.config.loss.composition import Composition
from pipeline.config.loss.margins import Margin, NoMargin
from pipeline.config.machines import CardLimit
from pipeline.config.policy import PretrainedModel, TemplateSettings
from pipeline.config.training import Optimisation

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class RewardTraining(Optimisation):
    """Optimisation of a reward model."""

    learning_rate: float = Field(1e-5, gt=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    checkpoint_every: int = Field(
        100, ge=0, description="optimiser steps between checkpoints; 0: none", json_schema_extra=OPERATIONAL
    )


class RewardModelConfig(Closed):
    """A reward model trained on pairs: the cross-entropy of their labels and P(chosen wins) = σ(r_w − r_l − m)."""

    name: str = Field(pattern=_NAME, description="folder name under runs/")
    seed: int = Field(0, ge=0)
    model: PretrainedModel = Field(
        description="a causal language model, which gets a new head of one output, or a classifier with one output"
    )
    pairs: PairData = Field(description="pairs, or groups of scored responses, where each two form a pair")
    held_out: HeldOut = HeldOut()
    limits: Limits = Field(Limits(), json_schema_extra=OPERATIONAL)
    chat: TemplateSettings = Field(TemplateSettings(), json_schema_extra=LATER)
    max_tokens: int = Field(2048, ge=8, description="pairs with a longer conversation are dropped and counted")
    ties: Literal["drop", "half", "rao_kupper"] = Field(
        "drop",
        description="pairs whose soft label is ½, or whose scores are equal. half: cross-entropy with ½, which pulls "
        "both rewards together; rao_kupper: the likelihood of a tie (Rao & Kupper 1967)",
    )
    eta: float | None = Field(
        None,
        gt=0,
        description="rao_kupper: η = log θ; default: the value at which responses of equal reward tie as often as the "
        "training pairs do, log((1 + t)/(1 − t))",
    )
    margin: Margin = Field(
        NoMargin(),
        description="m, by which the better reward must exceed the other: none, a number, or rewards: η times the "
        "difference of the pair's scores (Llama 2, arXiv:2307.09288, equation 2)",
    )
    training: RewardTraining = RewardTraining()
    resources: CardLimit = Field(
        CardLimit(),
        description="what this training shares with runs, by the name of Prefect's global concurrency limit",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="before")
    @classmethod
    def _one_process(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("accelerate") is not None:
            raise ValueError("accelerate: a reward model trains in one process; leave it out")
        return given

    @model_validator(mode="before")
    @classmethod
    def _usual_kind(cls, given: object) -> object:
        """Give the pairs without ``kind`` their usual kind."""
        if not isinstance(given, dict) or "pairs" not in given:
            return given
        return {**given, "pairs": usual_source(given["pairs"])}

    @field_validator("name")
    @classmethod
    def _no_dots(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("must not contain '..'")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "RewardModelConfig":
        unseen = next((cause for cause in self.limits.dropped if cause in OF_TOKENS), None)
        if unseen is not None:
            raise ValueError(f"limits.{unseen}: drop: reward-model does not look for it; use a share")
        if self.pairs.kind in ("images", "dots"):
            raise ValueError(f"pairs.kind: {self.pairs.kind} compares images; a reward model reads text: allowed: file")
        self.held_out.require_source(self.pairs)
        if self.eta is not None and self.ties != "rao_kupper":
            raise ValueError("eta: only read with ties: rao_kupper")
        if self.margin.kind not in ("none", "constant", "rewards"):
            raise ValueError(f"margin: {self.margin.kind} reads log-probabilities; use none, a number or rewards")
        if self.ties == "rao_kupper" and self.margin.kind != "none":
            raise ValueError(f"margin: {self.margin.kind}: rao_kupper has its own margin, eta; use none")
        return self

    def composition(self, eta: float | None) -> Composition:
        """The loss, in which a response's score is its reward; ``eta`` None: the Bradley-Terry model."""
        link = "logistic" if eta is None else {"kind": "rao_kupper", "eta": eta}
        return Composition.model_validate({"link": link, "margin": self.margin})


class AccuracyGate(Closed):
    """When a version of the discriminator may label."""

    accuracy: float = Field(
        0.6, ge=0.5, le=1, description="smallest share of held-out gold comparisons that it must rank correctly"
    )
    held_out: float = Field(
        0.25, gt=0, lt=1, description="share of prompts whose gold is kept out of every refit, for measuring"
    )
    comparisons: int = Field(
        16, ge=1, description="held-out comparisons that are needed; with fewer, no version passes"
    )
    error: float = Field(
        0.05,
        gt=0,
        le=1,
        description="largest probability that any version of a run passes by chance, if all rank like a coin: that of "
        "round k must rank so many right that a coin does so with at most 1/(k(k+1)) of it; 1: accuracy alone decides",
        json_schema_extra=LATER,
    )


class Discriminator(Closed):
    """A discriminator: it learns from gold preferences, bought for a few pairs of responses, and labels the rest.

    The controls of a study are values of ``silver``: ``static`` is a reward model trained once, ``self`` the policy's
    own implicit reward, ``none`` training on gold alone (with the section ``replay``: gold again and again). Only this
    setting changes: ``self`` and ``none`` train no discriminator and ignore the settings of its training.
    """

    silver: Literal["online", "static", "self", "none"] = Field(
        "online",
        description="labels for responses without gold. online: the discriminator, refitted each round; static: the "
        "discriminator of round 1, for which the gold of all rounds is bought; self: β log π/π_start of the policy; "
        "none: no labels, rounds train on gold alone",
    )
    gold: Literal["scorer", "people"] = Field(
        "scorer", description="source of gold: the section scorer, or people, through files in the run folder"
    )
    budget: int = Field(128, ge=1, description="gold comparisons a round; never more than one a prompt")
    select: Literal["random", "uncertain", "disagreement"] = Field(
        "random",
        description="comparisons to buy. uncertain: those that the discriminator is least sure of; disagreement: those "
        "on whose margin its members differ most. Before there is a discriminator: at random",
    )
    members: int = Field(1, ge=1, le=16, description="discriminators trained side by side; the mean of their scores")
    start: str | None = Field(
        None,
        min_length=1,
        description="model folder or hub name of the first version's starting point, a language model or a classifier "
        "with one output; default: the start policy",
    )
    max_tokens: int = Field(
        2048, ge=8, description="of a conversation; comparisons with a longer one are not trained on"
    )
    gate: AccuracyGate = AccuracyGate()
    training: RewardTraining = RewardTraining(epochs=3)
    wait: Annotated[float, Field(ge=0)] | None = Field(
        0.0,
        description="people: seconds to wait for answers; then the run pauses (exit code 3; the same command continues "
        "it); null: no limit",
        json_schema_extra=OPERATIONAL,
    )
    poll: float = Field(
        2.0, gt=0, description="people: seconds between checks for answers", json_schema_extra=OPERATIONAL
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
            raise ValueError(f"select: {self.select} needs a discriminator that is refitted; silver is {self.silver}")
        if self.trains and self.budget * self.gate.held_out < self.gate.comparisons:
            raise ValueError(
                f"gate.comparisons: {self.gate.comparisons}, but of {self.budget} comparisons in the first round about "
                f"{self.budget * self.gate.held_out:.0f} are held out, so no version could pass"
            )
        return self


def buys(settings: Discriminator, round_: int) -> bool:
    """Whether ``round_`` buys gold; for a static reward model, the first round buys all of it."""
    return round_ == 1 or settings.silver != "static"


def bought(settings: Discriminator, rounds: int, round_: int) -> int:
    """Number of gold comparisons that ``round_`` of ``rounds`` buys."""
    if not buys(settings, round_):
        return 0
    return settings.budget * rounds if settings.silver == "static" else settings.budget
