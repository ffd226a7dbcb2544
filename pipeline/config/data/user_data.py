"""The user's own files and data sets, and what their rows mean."""

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


UserData = Annotated[FileData | DatasetData, Field(discriminator="kind")]
