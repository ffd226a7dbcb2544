"""Where prompts and pairs come from, and which are held out."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Closed


class Columns(Closed):
    """Names of the columns in the user's file."""

    prompt: str = Field("prompt", description="a string, or a list of {role, content}")
    chosen: str = Field("chosen", description="pairs: the preferred response")
    rejected: str = Field("rejected", description="pairs: the other one")
    chosen_score: str = Field("chosen_score", description="pairs: a reward model's score; may be absent")
    rejected_score: str = Field("rejected_score", description="pairs: the same of rejected; may be absent")
    soft_label: str = Field(
        "soft_label", description="pairs: probability that chosen is the better one; absent: 1 (certain)"
    )
    win_probability: str = Field(
        "win_probability", description="pairs: probability that chosen beats the policy's average answer; may be absent"
    )
    win_probability_rejected: str = Field(
        "win_probability_rejected", description="pairs: the same of rejected; absent: 1 - win_probability"
    )
    chosen_prior: str = Field("chosen_prior", description="pairs: log ζ of chosen, nats; for the prior given")
    rejected_prior: str = Field("rejected_prior", description="pairs: log ζ of rejected, nats; for the prior given")
    completion: str = Field("completion", description="single responses marked good or bad: the response")
    label: str = Field("label", description="single responses: true for good, false for bad")
    responses: str = Field("responses", description="K responses a prompt: a list of strings, at least 2")
    rewards: str = Field("rewards", description="K responses a prompt: a list with one number a response")
    response: str = Field("response", description="a reference response (warm start)")
    answer: str = Field("answer", description="what gold scorers compare with; may be absent")


class FileData(Closed):
    """A local JSONL, JSON, CSV or parquet file (.gz too for text), or a folder of them."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1)
    columns: Columns = Columns()


class RestaurantData(Closed):
    """The generated data-to-text task: meaning representation -> one sentence."""

    kind: Literal["restaurants"] = "restaurants"
    prompts: int = Field(1200, ge=8, le=20000, description="distinct meaning representations")
    references: int = Field(4, ge=1, le=16, description="sentences written for each in the warm-start set")
    wrong: float = Field(0.10, ge=0, le=1, description="share of slots realised with another value")
    missing: float = Field(0.10, ge=0, le=1, description="share of slots left out")
    extra: float = Field(0.10, ge=0, le=1, description="share of sentences that invent a slot")
    seed: int = Field(0, ge=0)


Data = Annotated[FileData | RestaurantData, Field(discriminator="kind")]


class HeldOut(Closed):
    """Prompts that no round trains on, split by prompt content, never by row."""

    prompts: int = Field(128, ge=1, description="how many prompts")
    seed: int = Field(0, ge=0, description="which ones; does not follow the run's seed")
    path: str | None = Field(
        None, description="take them from this file instead (same columns); must be disjoint from the training prompts"
    )
