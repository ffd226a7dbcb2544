"""Training examples of a round: pairs from scored groups, and replay from earlier rounds and a data set."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import LATER, Closed


class SecondPolicy(Closed):
    """Another model that answers a round's prompts, for pairs of a strong and a weak answer (delta learning).

    No labels are needed (arXiv:2507.06187). Its tokenizer and chat template may be others than the policy's.
    """

    path: str = Field(min_length=1, description="folder or hub name of a whole model")
    n: int = Field(1, ge=1, le=1024, description="responses a prompt")
    role: Literal["weak", "strong"] = Field(
        "weak", description="weak: its responses are rejected and the policy's chosen; strong: the other way round"
    )


_RULES = (
    "of the pairs of a prompt that min_margin, max_margin, max_length_difference and max_similarity allow: "
    "best_worst: the one with the largest margin; best_random: the best response against a random one; random: one at "
    "random; all: all, or max_pairs of them at random; closest: the one with the smallest margin; median_split: the "
    "upper half against the lower, rank by rank; marked: no pairs but single responses, good above threshold and bad "
    "below; strong_weak: the k-th response of the policy and the k-th of second, without labels"
)


class Pairing(Closed):
    """Rules that turn scored groups into pairs, or into single responses marked good or bad (``rule: marked``).

    Ties and responses with equal tokens never become pairs. A loss over K responses uses each whole group, except for
    responses that ``drop_cut``, ``max_response_tokens`` and ``max_similarity`` leave out.
    """

    rule: Literal["best_worst", "best_random", "random", "all", "closest", "median_split", "marked", "strong_weak"] = (
        Field("best_worst", description=_RULES)
    )
    min_margin: float = Field(0.0, ge=0, description="score differences at or below this are ties")
    max_margin: float | None = Field(None, gt=0, description="pairs whose scores differ by more are left out")
    max_length_difference: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="pairs whose token counts differ by more than this share of the longer one are left out",
    )
    max_similarity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="near-duplicates are left out: responses with 1 - edit distance / tokens of the longer above this",
    )
    max_pairs: int | None = Field(None, ge=1, description="all: at most this many a prompt, chosen at random")
    threshold: float | None = Field(None, description="marked: default: the mean score of the prompt's responses")
    max_disagreement: float | None = Field(
        None, ge=0, description="drop responses on which the labellers of an ensemble differ by more than this"
    )
    drop_cut: bool = Field(False, description="drop responses cut by the length limit")
    drop_unfinished_thinking: bool = Field(
        True,
        description="drop responses that ended inside a thought and have no answer; false: they count as empty answers",
        json_schema_extra=LATER,
    )
    max_response_tokens: int | None = Field(None, ge=1, description="drop responses that are longer")
    second: SecondPolicy | None = Field(
        None, description="strong_weak: the model whose responses are paired with the policy's", json_schema_extra=LATER
    )
    drop_repeated: bool = Field(False, description="drop what an earlier round trained on, token for token")

    @model_validator(mode="after")
    def _read_by_the_rule(self) -> "Pairing":
        if self.max_margin is not None and self.max_margin <= self.min_margin:
            raise ValueError(f"max_margin: {self.max_margin:g} must be above min_margin, {self.min_margin:g}")
        if self.max_pairs is not None and self.rule != "all":
            raise ValueError(f"max_pairs: rule {self.rule} does not read it; only rule all does")
        if self.threshold is not None and self.rule != "marked":
            raise ValueError(f"threshold: rule {self.rule} does not read it; only rule marked does")
        if self.rule == "strong_weak" and self.second is None:
            raise ValueError(
                "second: rule strong_weak pairs the policy's responses with another model's; give its path"
            )
        if self.rule != "strong_weak" and self.second is not None:
            raise ValueError(f"second: rule {self.rule} does not read it; only rule strong_weak does")
        of_scores = sorted(self.changed & {"min_margin", "max_margin", "max_disagreement"})
        if self.rule == "strong_weak" and of_scores:
            raise ValueError(f"{of_scores[0]}: rule strong_weak reads no scores")
        unread = sorted(self.changed & {"max_margin", "max_length_difference"}) if self.rule == "marked" else []
        if unread:
            raise ValueError(f"{unread[0]}: rule marked makes no pairs and does not read it")
        return self


class Replay(Closed):
    """Iterative mode: examples of earlier rounds and of a data set that a round also trains on.

    Shares are of all examples of the round; if there are too few, all of them are used.
    """

    share: float = Field(0.0, ge=0, lt=1, description="from earlier rounds")
    decay: float = Field(
        0.5, gt=0, le=1, description="how much of it comes from each round, relative to the round after it"
    )
    max_age: int | None = Field(None, ge=1, description="rounds; 1: only the round before")
    max_drift: float | None = Field(
        None,
        gt=0,
        description="nats per token: a round and those before it are too old if its responses' log-probabilities "
        "have moved further than this since sampling",
    )
    anchor: float = Field(0.0, ge=0, lt=1, description="from the data set in the section pairs")

    @model_validator(mode="after")
    def _something_left(self) -> "Replay":
        if self.share + self.anchor == 0:
            raise ValueError("share: 0 and anchor 0 replay nothing; leave the section out")
        if self.share + self.anchor >= 1:
            raise ValueError(
                f"share: {self.share:g} and anchor {self.anchor:g} leave no room for the round's own examples"
            )
        unread = sorted(self.changed & {"decay", "max_age", "max_drift"}) if self.share == 0 else []
        if unread:
            raise ValueError(f"{unread[0]}: share is 0, so nothing from earlier rounds is used")
        return self


def replayed_ages(replay: Replay, round_: int) -> list[int]:
    """Ages in rounds of what ``round_`` may replay, the youngest first; 1 is the round before."""
    oldest = round_ - 1 if replay.max_age is None else min(replay.max_age, round_ - 1)
    return [*range(1, oldest + 1)] if replay.share else []
