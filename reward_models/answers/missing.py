"""Answers, and why one is missing. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Missing = Literal[
    "abstained",  # the labeller said that it cannot decide
    "unparsed",  # its answer holds no verdict
    "cut",  # its answer ended at the longest length
    "reasoning_only",  # it only thought, and answered nothing
    "declined",  # it or its server's filter will not judge this
    "no_logprobs",  # its server gives no log-probabilities
    "refused",  # its server rejects this question (too long, say)
    "timeout",
    "connection",  # refused or closed
    "rate_limited",
    "server_error",
    "malformed_answer",  # not JSON, or JSON of another form
    "empty_answer",
    "event_stream",  # a stream of events, which was not asked for
    "unreachable",  # not asked: too many questions in a row had no answer
    "budget",  # not asked: the budget is used up
]


# The labeller itself answered: asking again would cost as much and give the same.
FINAL: tuple[Missing, ...] = ("abstained", "unparsed", "cut", "reasoning_only", "declined")


@dataclass(frozen=True, slots=True)
class Answer:
    """A score or P(the first response is better), or the reason why it is missing."""

    value: float | None
    missing: Missing | None = None

    @property
    def is_final(self) -> bool:
        """Whether the labeller itself answered, with or without a value."""
        return self.missing is None or self.missing in FINAL
