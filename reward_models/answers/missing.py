"""Answers, and why one is missing. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Missing = Literal[
    "abstained",  # the labeller said that it cannot tell
    "unparsed",  # it said something that is no verdict
    "no_logprobs",  # its server gives no log-probabilities
    "refused",  # its server does not take this question (too long, say)
    "timeout",
    "connection",  # refused or closed
    "rate_limited",
    "server_error",
    "malformed_answer",  # no JSON, or JSON of another form
    "empty_answer",
    "unreachable",  # not asked: too many questions in a row went without an answer
    "budget",  # not asked: it is used up
]


# What the labeller itself has said: asking again would cost as much and say the same.
FINAL: tuple[Missing, ...] = ("abstained", "unparsed")


@dataclass(frozen=True, slots=True)
class Answer:
    """A score or P(the first response is better), or why there is none."""

    value: float | None
    missing: Missing | None = None
