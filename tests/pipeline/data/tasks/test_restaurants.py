"""The generated task: distinct inputs, clean sentences that the matcher accepts, spoilt ones in known shares."""

import pytest

from pipeline.config import RestaurantData
from pipeline.data.tasks.restaurants import generate
from pipeline.data.tasks.slots import parse_mr, slot_error_rate, slot_errors


def errors(settings: RestaurantData, clean: bool = False) -> dict[str, float]:
    found = [
        slot_errors(parse_mr(row.mr), text)
        for row in generate(settings)
        for text in (row.clean if clean else row.references)
    ]
    slots = sum(e.slots for e in found)
    return {
        "missing": sum(e.missing for e in found) / slots,
        "contradictory": sum(e.contradictory for e in found) / slots,
        "invented": sum(e.invented for e in found) / len(found),
        "rate": slot_error_rate(found),
    }


def test_inputs_are_distinct_and_sentences_differ() -> None:
    rows = generate(RestaurantData(prompts=1500, references=4))
    assert len({row.mr for row in rows}) == 1500
    assert len({text for row in rows for text in row.clean}) > 5000
    assert all(3 <= len(parse_mr(row.mr)) <= 8 and len(row.references) == 4 for row in rows)


def test_clean_sentences_have_no_slot_errors() -> None:
    assert errors(RestaurantData(prompts=1000), clean=True)["rate"] == 0


def test_without_spoiling_the_references_have_no_slot_errors() -> None:
    assert errors(RestaurantData(prompts=300, wrong=0, missing=0, extra=0))["rate"] == 0


def test_wrong_values_come_in_the_share_asked_for() -> None:
    found = errors(RestaurantData(prompts=800, wrong=0.1, missing=0, extra=0))
    assert found["missing"] == pytest.approx(0.1, abs=0.015)
    # Some other values are vaguer than the right one ('high' for '5 out of 5'), which contradicts nothing.
    assert 0.9 * found["missing"] < found["contradictory"] < found["missing"] and found["invented"] == 0


def test_missing_values_come_in_the_share_asked_for() -> None:
    # Name and type are always there, so the share is of the other slots.
    settings = RestaurantData(prompts=800, wrong=0, missing=0.2, extra=0)
    slots = [len(parse_mr(row.mr)) for row in generate(settings)]
    expected = 0.2 * (sum(slots) - 2 * len(slots)) / sum(slots)
    assert errors(settings)["missing"] == pytest.approx(expected, abs=0.015)


def test_invented_slots_come_in_the_share_asked_for() -> None:
    found = errors(RestaurantData(prompts=800, wrong=0, missing=0, extra=0.25))
    assert found["invented"] == pytest.approx(0.25, abs=0.025)
    assert found["missing"] == found["contradictory"] == 0


def test_a_larger_set_continues_a_smaller_one_and_seeds_differ() -> None:
    few, many, other = (generate(RestaurantData(prompts=n, seed=s)) for n, s in ((50, 3), (80, 3), (50, 4)))
    assert many[:50] == few
    assert {row.mr for row in few} != {row.mr for row in other}
