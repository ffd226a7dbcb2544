"""Which rows of a mixture are used, by the weights of its members. Torch-free."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import MixtureData
from pipeline.config.data.mixture import sources_in
from pipeline.data.reading import PromptRow, SourceRow
from pipeline.errors import UserError
from pipeline.types import TextPreference, content_hash

_DIGITS = 16
_EVERY = 1 << 4 * _DIGITS


@dataclass(frozen=True, slots=True)
class MemberRows:
    """A member of a mixture by its name in the config (``pairs.of.0``): rows without a fault, and those used."""

    name: str
    where: str
    used: int
    readable: int


@dataclass(frozen=True, slots=True)
class MixtureRows:
    """The rows of a mixture that are used, as ``MixtureData`` says.

    Attributes:
        data: the mixture.
        readable, used: rows of each member without a fault, and those of them that are used.
        limits: for each member, the hash below which prompts are used.
    """

    data: MixtureData
    readable: tuple[int, ...]
    used: tuple[int, ...]
    limits: tuple[int, ...]

    def keeps(self, row: SourceRow[PromptRow] | SourceRow[TextPreference]) -> bool:
        """Return whether a row is used, or has a fault, which is for others to judge."""
        if row.value is None:
            return True
        place = row.member or 0
        limit = self.limits[place]
        return limit == _EVERY or _hash(self.data.seed, place, row.value.prompt.id) < limit

    def counts(self, name: str) -> list[MemberRows]:
        """Return the rows of each member; ``name``: that of the mixture in the config."""
        found = zip(sources_in(self.data, name), self.used, self.readable, strict=True)
        return [MemberRows(member, part.where, used, readable) for (member, part), used, readable in found]


def select(data: MixtureData, rows: Iterable[SourceRow[PromptRow] | SourceRow[TextPreference]]) -> MixtureRows:
    """Return which of all ``rows`` of a mixture are used. Needs 8 bytes a row.

    Raises:
        UserError: a member has no rows.
    """
    hashes = [array("Q") for _ in data.of]
    seen: set[int] = set()
    for row in rows:
        place = row.member or 0
        seen.add(place)
        if row.value is not None:
            hashes[place].append(_hash(data.seed, place, row.value.prompt.id))
    empty = next((part.where for place, part in enumerate(data.of) if place not in seen), None)
    if empty is not None:
        raise UserError(f"{empty}: holds no rows; leave it out of the mixture")
    readable = tuple(map(len, hashes))
    if not data.is_weighted:
        return MixtureRows(data, readable, readable, (_EVERY,) * len(hashes))
    total = min(count / share for count, share in zip(readable, data.shares, strict=True))
    wanted = [min(count, max(1, round(total * share))) for count, share in zip(readable, data.shares, strict=True)]
    found = [_nearest(sorted(member), number if total else 0) for member, number in zip(hashes, wanted, strict=True)]
    return MixtureRows(data, readable, tuple(used for used, _ in found), tuple(limit for _, limit in found))


def _nearest(hashes: Sequence[int], wanted: int) -> tuple[int, int]:
    """Return the number of rows next to ``wanted`` that whole prompts make, and the hash that these are below."""
    if not wanted:
        return 0, 0
    last = hashes[wanted - 1]
    without, with_last = bisect_left(hashes, last), bisect_right(hashes, last)
    if without and wanted - without < with_last - wanted:
        return without, last
    return with_last, last + 1


def _hash(seed: int, place: int, prompt: str) -> int:
    return int(content_hash(["mixture", seed, place, prompt], _DIGITS), 16)
