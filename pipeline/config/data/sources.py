"""Sources of prompts and preferences, and held-out prompts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import LATER, Closed
from pipeline.config.data.images import ImageData
from pipeline.config.data.mixture import MixtureData, sources_in
from pipeline.config.data.user_data import DatasetData, FileData


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


class DotsData(Closed):
    """The generated image task: pictures of 8 x 8 pixels with one dot of a colour, in the upper or the lower half.

    A prompt asks for one of 8 conditions, 4 colours times 2 halves, and has a number, so that there can be many. The
    pictures of the warm start, and the pairs of offline mode, have unreliable labels.
    """

    kind: Literal["dots"] = "dots"
    prompts: int = Field(960, ge=16, le=100000)
    pictures: int = Field(6144, ge=8, le=1000000, description="of the warm start")
    colour: float = Field(0.7, ge=0, le=1, description="share of them whose colour is the one asked for")
    half: float = Field(0.8, ge=0, le=1, description="share of them whose half is")
    seed: int = Field(0, ge=0)

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return "dots"


class DotPairs(Closed):
    """A fixed set of comparisons for the task ``dots``, one for each of its prompts, in offline mode.

    Two pictures are drawn as those of the warm start are, some of them faded and noisy; the one with more of colour,
    half and a clean shape right is the chosen one.
    """

    kind: Literal["dots"] = "dots"
    pairs: int = Field(960, ge=16, le=100000)
    colour: float = Field(0.7, ge=0, le=1, description="share of the pictures whose colour is the one asked for")
    half: float = Field(0.8, ge=0, le=1, description="share of them whose half is")
    faded: float = Field(0.3, ge=0, le=1, description="share of them without a clean dot")
    wrong: float = Field(0.0, ge=0, le=1, description="share of the pairs with chosen and rejected exchanged")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _pictures_differ(self) -> "DotPairs":
        if {self.colour, self.half, self.faded} <= {0.0, 1.0}:
            raise ValueError(
                f"faded: {self.faded:g}, with colour: {self.colour:g} and half: {self.half:g}, makes all pictures of a "
                "prompt equally good; allowed: one of them between 0 and 1"
            )
        return self

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return "dots"


class ConditionData(Closed):
    """Prompts made from names alone: each condition many times, with a number; for models that read no text."""

    kind: Literal["conditions"] = "conditions"
    of: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("image",),
        min_length=1,
        description="names, in the order of the model's classes; one name for a model without conditions",
    )
    repeats: int = Field(64, ge=1, le=1000000, description="prompts for each name")

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return "conditions"


PairData = Annotated[FileData | DatasetData | MixtureData | ImageData | DotPairs, Field(discriminator="kind")]
Data = Annotated[
    FileData | DatasetData | MixtureData | ImageData | RestaurantData | DotsData | ConditionData,
    Field(discriminator="kind"),
]
AnyData = Data | PairData


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
        if self.by == "source" and self.is_given:
            raise ValueError("by: source splits the prompts of the run; path and split have prompts of their own")
        return self

    def require_source(self, source: AnyData | None) -> None:
        """Raise ``ValueError`` if ``source``, which has the prompts, cannot give what is to be held out."""
        columns = [part.columns for _, part in sources_in(source, "")]
        if self.by == "source" and (not columns or any(one.source is None for one in columns)):
            raise ValueError("held_out.by: source needs columns.source, the column that names it")
        if isinstance(source, MixtureData) and self.is_given:
            raise ValueError(
                f"held_out.{'split' if self.path is None else 'path'}: a mixture has no held-out prompts of their own; "
                "without this, some of its prompts are held out"
            )

    @property
    def is_given(self) -> bool:
        """Whether held-out prompts have a source of their own."""
        return self.path is not None or self.split is not None
