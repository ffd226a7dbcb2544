"""Sources of prompts and preferences, and held-out prompts."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from pipeline.config.base import LATER, Closed
from pipeline.config.data.columns import Columns, LabelWords, Signed, Votes

EVERY_SPLIT = "all"


class _Rows(Closed):
    """What the rows of the user's data mean."""

    columns: Columns = Columns()
    votes: Votes = Votes()
    labels: LabelWords = Field(LabelWords(), json_schema_extra=LATER)
    rewards_are: Literal["scores", "ranks", "signed"] | None = Field(
        None,
        description="numbers of rewards, chosen_score and rejected_score. scores: higher is better; ranks: 1 is the "
        "best; signed: rewards is one number for the two responses chosen and rejected; see signed. Default: scores, "
        "but rewards that look like ranks are refused",
        json_schema_extra=LATER,
    )
    signed: Signed = Field(Signed(), json_schema_extra=LATER)
    rows: Literal["whole", "responses"] = Field(
        "whole",
        description="responses: a row holds one response (columns.responses) and its score; consecutive rows with the "
        "same prompt are one group",
        json_schema_extra=LATER,
    )
    system: Literal["turn", "user"] = Field(
        "turn",
        description="user: a system turn becomes the beginning of the first user turn, for templates without a system "
        "role",
        json_schema_extra=LATER,
    )
    parse: bool = Field(
        False,
        description="read texts that are conversations, lists or numbers written out (JSON or Python) as those",
        json_schema_extra=LATER,
    )

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result: once rewards are accepted, the default means scores."""
        plain = super().identity()
        return {name: value for name, value in plain.items() if (name, value) != ("rewards_are", "scores")}

    @model_validator(mode="after")
    def _one_source_of_preference(self) -> "_Rows":
        others = {"votes": self.columns.has_votes, "columns.best": self.columns.best is not None}
        other = next((name for name, given in others.items() if given), None)
        if self.rewards_are == "signed" and other is not None:
            raise ValueError(f"rewards_are: signed numbers say which response is better, and so does {other}; not both")
        return self


class FileData(_Rows):
    """Local JSONL, JSON, CSV, TSV, parquet or Arrow (.gz too for text): a file, a folder of them, or a pattern."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, description="file, folder (read with its subfolders), or a pattern such as d/*.csv")
    split: str | None = Field(
        None,
        min_length=1,
        description="of a folder that holds several, or of a JSON file with several lists: such as train; all: every "
        "split",
        json_schema_extra=LATER,
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="of CSV; default: guessed", json_schema_extra=LATER
    )

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return self.path if self.split is None else f"{self.path}, split {self.split}"

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result: where a split need not be named, all of them are read."""
        plain = super().identity()
        return {name: value for name, value in plain.items() if (name, value) != ("split", EVERY_SPLIT)}


class DatasetData(_Rows):
    """A data set on the Hugging Face hub, or a folder that ``datasets`` saved; read with ``datasets``.

    A hub data set is fetched once into the cache of ``datasets``, so later runs work offline.
    """

    kind: Literal["dataset"] = "dataset"
    path: str = Field(min_length=1, description="owner/name on the hub, or a folder made by save_to_disk")
    subset: str | None = Field(None, description="the data set's configuration, if it has several")
    split: str = Field("train", min_length=1, description="such as train, test or train[:1%]")
    revision: str | None = Field(None, description="hub revision")

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

    prompts: int = Field(128, ge=1, description="how many prompts, at most")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the distinct prompts, rounded up, at most, but 20 prompts if these are at most a "
        "quarter; a source of their own is read up to prompts",
        json_schema_extra=LATER,
    )
    by: Literal["prompt", "source"] = Field(
        "prompt",
        description="source: all prompts with the same columns.source are held out together, or none of them",
        json_schema_extra=LATER,
    )
    seed: int = Field(0, ge=0, description="selects the prompts; independent of the run's seed")
    path: str | None = Field(
        None, description="take them from this file instead (same columns); must be disjoint from the training prompts"
    )
    split: str | None = Field(None, description="take them from another split of the data, such as test")

    @model_validator(mode="after")
    def _one_source(self) -> "HeldOut":
        if self.path is not None and self.split is not None:
            raise ValueError("split: held-out prompts come from path or from split, not from both")
        return self

    def require_source(self, columns: Columns | None) -> None:
        """Raise ``ValueError`` if sources are held out, but ``columns`` names none; ``columns``: of the prompts."""
        if self.by == "source" and (columns is None or columns.source is None):
            raise ValueError("held_out.by: source needs columns.source, the column that names it")

    @property
    def is_given(self) -> bool:
        """Whether held-out prompts have a source of their own."""
        return self.path is not None or self.split is not None
