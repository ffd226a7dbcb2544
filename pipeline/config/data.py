"""Sources of prompts and preferences, held-out prompts, and the faults that data may have."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import OPERATIONAL, Closed

Column = Annotated[str, Field(min_length=1)]


class Columns(Closed):
    """Names of the columns in the user's data; ``a.b`` is field b of a, or of each object of a list a."""

    prompt: Column | tuple[Column, ...] = Field(
        "prompt",
        description="a string, or a list of {role, content}; several columns of strings are joined by a blank line, "
        "empty ones left out",
    )
    system: Column | None = Field(None, description="a system turn to put before the prompt; may be empty")
    chosen: Column = Field("chosen", description="pairs: the preferred response (with votes: one of the two)")
    rejected: Column = Field("rejected", description="pairs: the other one")
    chosen_score: Column = Field("chosen_score", description="pairs: a reward model's score; may be absent")
    rejected_score: Column = Field("rejected_score", description="pairs: the same for rejected; may be absent")
    soft_label: Column = Field(
        "soft_label", description="pairs: probability that chosen is the better one; absent: 1 (certain)"
    )
    votes: Column | None = Field(
        None,
        description="pairs: a vote or a list of votes that decide which response is chosen; see the section votes",
    )
    chosen_votes: Column | None = Field(None, description="pairs: number of votes for chosen, instead of votes")
    rejected_votes: Column | None = Field(None, description="pairs: number of votes for rejected")
    tie_votes: Column | None = Field(None, description="pairs: number of votes for a tie; optional")
    win_probability: Column = Field(
        "win_probability", description="pairs: probability that chosen beats the policy's average answer; may be absent"
    )
    win_probability_rejected: Column = Field(
        "win_probability_rejected", description="pairs: the same for rejected; absent: 1 - win_probability"
    )
    chosen_prior: Column = Field("chosen_prior", description="pairs: log ζ of chosen, nats; for prior: given")
    rejected_prior: Column = Field("rejected_prior", description="pairs: log ζ of rejected, nats; for prior: given")
    completion: Column = Field("completion", description="single responses marked good or bad: the response")
    label: Column = Field("label", description="single responses: true for good, false for bad")
    responses: Column = Field("responses", description="K responses a prompt: a list of strings, at least 2")
    rewards: Column = Field(
        "rewards",
        description="K responses a prompt: a list that has for each response a number, true or false, or a list of "
        "ratings (their mean is used)",
    )
    response: Column = Field("response", description="a reference response (warm start)")
    answer: Column = Field("answer", description="the answer that gold scorers compare with; may be absent")

    @model_validator(mode="after")
    def _votes_are_whole(self) -> "Columns":
        counts = (self.chosen_votes, self.rejected_votes)
        if self.votes is not None and counts != (None, None):
            raise ValueError("votes: either votes or counts of them (chosen_votes, rejected_votes), not both")
        if (None in counts and counts != (None, None)) or (counts[0] is None and self.tie_votes is not None):
            raise ValueError("chosen_votes: counts of votes need both chosen_votes and rejected_votes")
        if self.prompt == ():
            raise ValueError("prompt: names no column")
        return self

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that hold the prompt."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def has_votes(self) -> bool:
        """Whether votes decide which response is chosen."""
        return self.votes is not None or self.chosen_votes is not None


class Votes(Closed):
    """Label of a pair from votes: p = (v₁ + v₀/2) / (v₁ + v₂ + v₀).

    v₁ votes are for the response under ``chosen``, v₂ for the one under ``rejected``, v₀ are ties. If p is below one
    half, the two responses are swapped.
    """

    chosen: int | str = Field(1, description="a vote for the response in the column chosen")
    rejected: int | str = Field(2, description="a vote for the response in the column rejected")
    tie: int | str = Field(0, description="a vote for neither")
    label: Literal["soft", "majority"] = Field(
        "soft",
        description="soft: p is the soft label; majority: the response with more than half of the votes is chosen "
        "with certainty, and pairs without a majority are dropped",
    )

    @model_validator(mode="after")
    def _differ(self) -> "Votes":
        said = [str(vote) for vote in (self.chosen, self.rejected, self.tie)]
        if len(set(said)) < 3:
            raise ValueError(f"chosen, rejected and tie must differ, not {', '.join(said)}")
        return self


class FileData(Closed):
    """Local JSONL, JSON, CSV, parquet or Arrow (.gz too for text): a file, a folder of such files, or a pattern."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, description="file, folder (read with its subfolders), or a pattern such as d/*.csv")
    columns: Columns = Columns()
    votes: Votes = Votes()

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return self.path


class DatasetData(Closed):
    """A data set on the Hugging Face hub, or a folder that ``datasets`` saved; read with ``datasets``.

    A hub data set is fetched once into the cache of ``datasets``, so later runs work offline.
    """

    kind: Literal["dataset"] = "dataset"
    path: str = Field(min_length=1, description="owner/name on the hub, or a folder made by save_to_disk")
    subset: str | None = Field(None, description="the data set's configuration, if it has several")
    split: str = Field("train", min_length=1, description="such as train, test or train[:1%]")
    revision: str | None = Field(None, description="hub revision")
    columns: Columns = Columns()
    votes: Votes = Votes()

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return f"{self.path}, split {self.split}"


class RestaurantData(Closed):
    """The generated data-to-text task: meaning representation -> one sentence."""

    kind: Literal["restaurants"] = "restaurants"
    prompts: int = Field(1200, ge=8, le=20000, description="distinct meaning representations")
    references: int = Field(4, ge=1, le=16, description="sentences written for each in the warm-start set")
    wrong: float = Field(0.10, ge=0, le=1, description="share of slots realised with another value")
    missing: float = Field(0.10, ge=0, le=1, description="share of slots left out")
    extra: float = Field(0.10, ge=0, le=1, description="share of sentences that invent a slot")
    seed: int = Field(0, ge=0)

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return "restaurants"


UserData = Annotated[FileData | DatasetData, Field(discriminator="kind")]
Data = Annotated[FileData | DatasetData | RestaurantData, Field(discriminator="kind")]


class HeldOut(Closed):
    """Prompts that no round trains on, split by prompt content, never by row."""

    prompts: int = Field(128, ge=1, description="how many prompts")
    seed: int = Field(0, ge=0, description="selects the prompts; independent of the run's seed")
    path: str | None = Field(
        None, description="take them from this file instead (same columns); must be disjoint from the training prompts"
    )
    split: str | None = Field(None, description="take them from another split of the data set, such as test")

    @model_validator(mode="after")
    def _one_source(self) -> "HeldOut":
        if self.path is not None and self.split is not None:
            raise ValueError("split: held-out prompts come from path or from split, not from both")
        return self

    @property
    def is_given(self) -> bool:
        """Whether held-out prompts have a source of their own."""
        return self.path is not None or self.split is not None


def _share(default: float, description: str) -> float:
    found: float = Field(default, ge=0, le=1, description=description, json_schema_extra=OPERATIONAL)
    return found


class Limits(Closed):
    """Share of the rows that may have a fault, by cause, before check and run refuse the data.

    0 tolerates no such row; 1 only counts them. Rows that cannot be used for training are dropped and counted. Defaults
    are 0 for faults that would teach the model something wrong, and small for rows that are dropped or count twice.
    """

    malformed: float = _share(0, "a row that does not fit its columns; dropped")
    doubled_bos: float = _share(0, "a text contains the beginning-of-sequence token, which the chat format adds itself")
    doubled_eos: float = _share(0, "a text contains an end token, which the chat format adds itself")
    special_token: float = _share(
        0,
        "a text contains another control token, or a header that the chat template writes around turns, such as [INST]",
    )
    missing_eos: float = _share(0.1, "a response is over chat.max_response_tokens: cut, without an end token")
    not_a_prefix: float = _share(0.1, "the prompt's tokens are not a prefix of those of prompt and response")
    empty: float = _share(0.1, "a response without text; dropped")
    identical: float = _share(0.1, "two responses of the row are equal; dropped")
    identical_when_cut: float = _share(0.1, "the same, once cut to chat.max_response_tokens; dropped")
    tie: float = _share(1, "votes, scores or rewards are equal; the loss and the pairing rule decide what happens")
    duplicate_prompt: float = _share(1, "an earlier row has the same prompt")
    duplicate_row: float = _share(0.2, "an earlier row has the same prompt and responses, in any order")
    differing_answer: float = _share(0, "an earlier row has the same prompt with another answer")
    leak: float = _share(0, "a held-out prompt is also a training prompt, ignoring case and spaces")
    long_for_policy: float = _share(
        0.1, "a prompt over chat.max_prompt_tokens (dropped), or a row over the policy's context"
    )
    long_for_reward_model: float = _share(0.1, "prompt and response exceed scorer.max_tokens and lose their beginning")
