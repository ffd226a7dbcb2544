"""Several files or data sets as one, each with its share of the rows."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Closed
from pipeline.config.data.user_data import DatasetData, FileData, UserData

_WEIGHT = Field(
    None,
    gt=0,
    description="part of the mixture's rows, relative to the other weights; default: 1, but if no member has a "
    "weight, all rows of all members are used",
)


class MixtureFile(FileData):
    """A file of a mixture."""

    weight: float | None = _WEIGHT


class MixtureDataset(DatasetData):
    """A data set of a mixture."""

    weight: float | None = _WEIGHT


class MixtureData(Closed):
    """Several files or data sets, one after the other; a row is used once at most.

    Without any weight, all rows are used. With weights w and shares s = w/Σw, the mixture has as many rows as it can
    without a member having to give more than its n readable rows: N = min n/s, and a member gives round(N·s). Which
    ones, a hash of ``seed``, the member's place in ``of`` and the prompt decides, not the rows' order: equal settings
    give equal rows, and a row more changes few others. Rows with the same prompt stay together, so a member gives
    the number of rows that is the nearest to this which whole prompts make, and at least one prompt.
    """

    kind: Literal["mixture"] = "mixture"
    of: tuple[Annotated[MixtureFile | MixtureDataset, Field(discriminator="kind")], ...] = Field(
        description="files and data sets, each with settings of its own; of one form (pairs, groups, ...)"
    )
    seed: int = Field(0, ge=0, description="selects the rows; independent of the run's seed")

    @model_validator(mode="before")
    @classmethod
    def _usual_member(cls, given: object) -> object:
        """Give members without ``kind`` their usual kind."""
        if not isinstance(given, dict) or not isinstance(given.get("of"), list | tuple):
            return given
        return {**given, "of": [{"kind": "file", **one} if isinstance(one, dict) else one for one in given["of"]]}

    @model_validator(mode="after")
    def _members_differ(self) -> "MixtureData":
        if not self.of:
            raise ValueError("of: names no file and no data set")
        seen: dict[tuple[object, ...], int] = {}
        for place, one in enumerate(self.of):
            first = seen.setdefault((one.kind, one.path, one.split, one.__dict__.get("subset")), place)
            if first != place:
                raise ValueError(f"of.{place}.path: {one.where} is also in of.{first}; a row is used once at most")
        return self

    @property
    def is_weighted(self) -> bool:
        """Whether a member has a weight."""
        return any(one.weight is not None for one in self.of)

    @property
    def shares(self) -> tuple[float, ...]:
        """The parts of the rows that the members give; they sum to 1."""
        weights = [1.0 if one.weight is None else one.weight for one in self.of]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return ", ".join(one.where for one in self.of)


def usual_source(given: object) -> object:
    """Give a source without ``kind`` its usual kind: a list is a mixture of its items."""
    if isinstance(given, list | tuple):
        return {"kind": "mixture", "of": given}
    if isinstance(given, dict):
        return {"kind": "mixture" if "of" in given else "file", **given}
    return given


def part_of(source: object, member: int | None) -> UserData | None:
    """The file or data set that a row is from; ``member``: its place in a mixture. None: generated data."""
    parts = sources_in(source, "")
    return parts[member or 0][1] if parts else None


def sources_in(source: object, name: str) -> Sequence[tuple[str, UserData]]:
    """The files and data sets of ``source`` by their names in the config; ``name``: that of the source.

    A mixture's are ``pairs.of.0``, ``pairs.of.1``, ...; generated data has none.
    """
    if isinstance(source, MixtureData):
        return [(f"{name}.of.{place}", one) for place, one in enumerate(source.of)]
    return [(name, source)] if isinstance(source, FileData | DatasetData) else []
