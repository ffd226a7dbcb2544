"""What the gate of a round decides, and what a person answers: the two files that both are kept in. Torch-free."""

from typing import Literal

from pydantic import Field, JsonValue

from pipeline.config.base import Closed

Verdict = Literal["promote", "stop", "pause", "roll_back"]
Answer = Literal["promote", "stop", "roll_back"]


class Rule(Closed):
    """One rule that was looked at: what it measured, against what, and whether it holds."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float
    broken: bool


class Decision(Closed):
    """``round_NNN/gate/decision.json``.

    ``best_round`` is the round whose policy is the best so far, and what a roll-back goes back to; ``reasons`` are
    sentences for people; ``measures`` are plain numbers, each with ``_ci`` beside it where there is an interval.
    """

    decision: Verdict
    reasons: tuple[str, ...]
    best_round: int = Field(ge=0)
    rules: tuple[Rule, ...] = ()
    measures: dict[str, JsonValue] = Field(default_factory=dict)


class Approval(Closed):
    """``approvals/round_NNN.json``: what a person answered to a pause, or to a stop. ``time`` is UTC, ISO 8601."""

    decision: Answer
    by: str = Field("", max_length=200)
    reason: str = Field("", max_length=2000)
    time: str = ""
