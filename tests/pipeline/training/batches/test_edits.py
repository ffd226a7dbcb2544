"""Tokens that two responses do not share."""

import pytest

from pipeline.training.batches.edits import edits


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("abc", "abc", ("000", "000")),
        ("abc", "axc", ("010", "010")),
        ("abcd", "ad", ("0110", "00")),
        ("ad", "abcd", ("00", "0110")),
        ("ab", "xy", ("11", "11")),
        ("a", "", ("1", "")),
        # The longest block first, as difflib does for the authors; the fewest edits would be the letter b alone.
        ("aaa", "abaa", ("001", "1100")),
    ],
)
def test_replaced_inserted_and_deleted_tokens_are_edited(chosen: str, rejected: str, expected: tuple[str, str]) -> None:
    found = edits(list(map(ord, chosen)), list(map(ord, rejected)))
    assert tuple("".join(str(int(flag)) for flag in flags) for flags in found) == expected


def test_tokens_that_are_frequent_in_long_responses_are_not_edited_for_that() -> None:
    common = (3, 4) * 150
    assert edits((5, *common), (6, *common)) == ((True, *[False] * 300), (True, *[False] * 300))
