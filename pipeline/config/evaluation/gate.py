"""Evaluation on held-out prompts, and the gate between rounds: its second labeller and the limits of its rules."""

from typing import Literal

from pydantic import Field, JsonValue

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.evaluation.suites import Suite, SuiteRule
from pipeline.config.labellers.scorers import ScorerSettings


class Gate(Closed):
    """Decision after each round, from responses to held-out prompts.

    A rule counts as broken only when the whole 95 % interval lies beyond its limit, so with few prompts the
    gate waits longer. Rules compare with the start policy, or with the newest round that a person has promoted against
    the gate's decision. A limit of null disables its rule.
    """

    second: ScorerSettings | None = Field(
        None, description="a labeller that training never uses; the gate compares the training labeller with it"
    )
    min_prompts: int = Field(
        20, ge=2, description="held-out prompts; with fewer, no rule is checked and every round is promoted"
    )
    alarm: Literal["pause", "roll_back", "stop"] = Field(
        "pause", description="what a broken rule does: wait for a person, go back to the best round, or end the run"
    )
    max_kl: float | None = Field(2.0, gt=0, description="nats per token of the policy's own samples")
    max_length: float | None = Field(2.0, gt=1, description="factor by which tokens a response may grow")
    min_length: float | None = Field(
        0.2, gt=0, lt=1, description="factor to which tokens may fall, in responses that end by themselves"
    )
    min_length_falling: float | None = Field(
        0.6,
        gt=0,
        lt=1,
        description="the same factor, once tokens have fallen by a tenth or more in two rounds after another",
        json_schema_extra=LATER,
    )
    max_length_share: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="share of the reward's gain that comes with more tokens, once there are min_longer times as many",
    )
    min_longer: float = Field(1.4, ge=1, description="max_length_share: growth from which the rule applies; 1: always")
    max_repetition: float | None = Field(
        0.3, gt=0, le=1, description="rise in the share of responses that contain the same four words twice"
    )
    max_unfinished: float | None = Field(
        0.3, gt=0, le=1, description="fall in the share of responses that end by themselves"
    )
    min_distinct: float | None = Field(
        0.4,
        gt=0,
        lt=1,
        description="factor to which the number of different word pairs may fall, in equally many words",
    )
    max_gap: float | None = Field(
        0.25,
        gt=0,
        lt=1,
        description="win rate by the training labeller minus that by the second, where the second sees no gain",
    )
    second_loss: float | None = Field(
        0.45, gt=0, lt=1, description="win rate by the second labeller, where the training labeller sees a gain"
    )
    roll_back_below: float | None = Field(
        0.45,
        gt=0,
        le=0.5,
        description="win rate over the best round; below it, the next round starts from the best one",
    )
    max_reward_fall: float | None = Field(
        0.0,
        ge=0,
        description="fall of the mean reward from the best round's, in the reward's own units; a win rate counts how "
        "often a response is better, not by how much",
        json_schema_extra=LATER,
    )
    on_reward_fall: Literal["roll_back", "alarm"] = Field(
        "roll_back",
        description="what a larger fall does. roll_back: the next round starts from the best one; alarm: as a broken "
        "rule",
        json_schema_extra=LATER,
    )
    patience: int | None = Field(
        3, ge=1, description="the run stops after this many rounds without a gain over the best one"
    )
    min_gain: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="patience: smallest gain, as win rate over the best round minus one half",
    )
    suites: dict[str, SuiteRule] = Field(
        {}, description="rules on suites of evaluation.suites, by name", json_schema_extra=LATER
    )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result; keys made before there was a ``min_length_falling`` mean null."""
        plain = {**super().identity(), "min_length_falling": self.min_length_falling}
        return {name: value for name, value in plain.items() if (name, value) != ("min_length_falling", None)}


class Evaluation(Closed):
    """Measurements on the held-out prompts after each round."""

    samples: int = Field(1, ge=1, description="responses a prompt at temperature 1, besides the greedy one")
    bootstrap: int = Field(1000, ge=100, description="resamples for the 95 % intervals of means and ratios")
    seed: int = Field(0, ge=0)
    max_gap: float | None = Field(
        None,
        gt=0,
        description="nats per token by which sampler and trainer may differ on the same responses; default: 0.01 in "
        "float32, 0.1 in float16, 0.3 in bfloat16",
        json_schema_extra=OPERATIONAL,
    )
    category: str | None = Field(
        None,
        min_length=1,
        description="column of the data by whose values held-out measures are told apart too: by_category in "
        "metrics.json",
        json_schema_extra=LATER,
    )
    suites: tuple[Suite, ...] = Field((), description="standard evaluations", json_schema_extra=LATER)

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result of evaluations; suites have stages, and keys, of their own."""
        return {name: value for name, value in super().identity().items() if name != "suites"}
