"""What of a section decides a result."""

from pydantic import Field

from pipeline.config.base import LATER, OPERATIONAL, Closed


class Section(Closed):
    size: int = 3
    threads: int = Field(2, json_schema_extra=OPERATIONAL)
    newer: tuple[int, ...] = Field((1, 2), json_schema_extra=LATER)


def test_a_setting_that_came_later_counts_only_if_it_is_not_its_default() -> None:
    assert Section().identity() == Section(threads=9, newer=(1, 2)).identity() == {"size": 3}
    assert Section(newer=(2,)).identity() == {"size": 3, "newer": [2]}
