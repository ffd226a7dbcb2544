"""Slots: what a sentence claims, and how its errors are counted."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tasks.restaurants import VALUES
from pipeline.data.tasks.slot_claims import read_claims
from pipeline.data.tasks.slots import SlotErrors, parse_mr, slot_error_rate, slot_errors
from tests.support.places import DATA

CORPUS = DATA / "corpora" / "e2e_nlg.jsonl"
MILL = (
    "name[The Mill], eatType[pub], food[English], priceRange[less than £20], customer rating[low], area[riverside], "
    "familyFriendly[no], near[Café Rouge]"
)
GOOD = (
    "The Mill is a riverside pub near Café Rouge. It serves English food for less than £20, has a low rating and is "
    "not family friendly."
)


def errors(mr: str, text: str) -> tuple[int, int, int]:
    found = slot_errors(parse_mr(mr), text)
    return found.missing, found.invented, found.contradictory


def claim(text: str, slot: str) -> set[str]:
    return read_claims(text).values[slot]


def test_mr_of_e2e_is_read_with_short_slot_names() -> None:
    assert parse_mr(MILL) == {
        "name": "The Mill",
        "type": "pub",
        "food": "English",
        "price": "less than £20",
        "rating": "low",
        "area": "riverside",
        "family": "no",
        "near": "Café Rouge",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not slot"),
        ("a pub by the river", "not slot"),
        ("name[The Mill] and food[English]", "and"),
        ("name[The Mill], food[]", "food has no value"),
        ("name[The Mill], name[Cotto]", "name appears twice"),
        ("name[The Mill], food[English", "not slot"),
    ],
)
def test_text_that_is_no_mr_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_mr(text)


def test_right_sentence_has_no_errors() -> None:
    assert slot_errors(parse_mr(MILL), GOOD) == SlotErrors(slots=8, missing=0, invented=0, contradictory=0)


@pytest.mark.parametrize(
    ("said", "instead", "expected"),
    [
        (" riverside pub", " pub", (1, 0, 0)),  # left out
        (" riverside pub", " pub in the city centre", (1, 0, 1)),  # another value
        ("has a low rating", "has a low rating and a high rating", (0, 0, 1)),  # a second value beside the right one
        ("less than £20", "less than £20, £20-25 or more than £30", (0, 0, 2)),
        ("less than £20", "more than £30", (1, 0, 1)),
        ("for less than £20", "cheaply", (1, 0, 0)),  # vaguer than the amount: missing, not contradicted
        ("is not family friendly", "is family friendly", (1, 0, 1)),
        ("is not family friendly", "is family friendly and not family friendly", (0, 0, 1)),
        ("The Mill is", "The Eagle is", (1, 0, 1)),
        ("near Café Rouge", "near Burger King", (1, 0, 1)),
        ("near Café Rouge", "near Blorb House", (1, 0, 1)),
        ("English food", "French food", (1, 0, 1)),
        ("a riverside pub", "a riverside pub and restaurant", (0, 0, 1)),
    ],
)  # fmt: skip
def test_errors_of_a_changed_sentence(said: str, instead: str, expected: tuple[int, int, int]) -> None:
    assert said in GOOD
    assert errors(MILL, GOOD.replace(said, instead)) == expected


def test_values_of_slots_that_the_mr_lacks_are_invented() -> None:
    text = "Cotto is a cheap, family friendly Italian place near Avalon with five stars."
    assert errors("name[Cotto]", text) == (0, 5, 0)


def test_name_behind_near_is_a_landmark_and_not_the_name() -> None:
    mr = "name[The Mill], near[Café Rouge]"
    assert errors(mr, "The Mill is near Café Rouge.") == (0, 0, 0)
    assert errors(mr, "Near Café Rouge there is The Mill.") == (0, 0, 0)
    assert errors(mr, "Café Rouge is near The Mill.") == (1, 0, 1)


def test_listing_every_value_does_not_pay() -> None:
    everything = (
        "pub restaurant coffee shop, cheap, moderate, expensive, low average high rating, city centre riverside"
    )
    found = slot_errors(parse_mr(MILL), f"The Mill {everything}")
    assert found.realised - found.invented - found.contradictory < 0


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("prices of £20-25", {"£20-25"}),
        ("between £20 and £25", {"£20-25"}),
        ("from 20 to 25 pounds", {"£20-25"}),
        ("the price range is £20 – £25", {"£20-25"}),
        ("prices over £30", {"more than £30"}),
        ("prices are more than 30 pounds", {"more than £30"}),
        ("no more than £20", {"less than £20"}),
        ("under £20", {"less than £20"}),
        ("£30 and up", {"more than £30"}),
        ("cheap", {"cheap"}),
        ("it has a low price range", {"cheap"}),
        ("the price range is high", {"high"}),
        ("moderately priced", {"moderate"}),
        ("prices are average and ratings are high", {"moderate"}),
        ("high customer rating", set()),
        ("not cheap", set()),
        ("it costs £12", {"£12"}),
    ],
)
def test_price_wordings(text: str, price: set[str]) -> None:
    assert claim(text, "price") == price


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("customer rating of 5 out of 5", {"5 out of 5"}),
        ("a five star pub", {"5 out of 5"}),
        ("rated 3 out of 5 by customers", {"3 out of 5"}),
        ("1/5 rating", {"1 out of 5"}),
        ("4 out of 5", {"4 out of 5"}),
        ("its customer rating is low", {"low"}),
        ("an average customer rating", {"average"}),
        ("highly rated", {"high"}),
        ("rated as average", {"average"}),
        ("high prices and low ratings", {"low"}),
        ("high prices", set()),
        ("prices of £20-25", set()),
    ],
)
def test_rating_wordings(text: str, rating: set[str]) -> None:
    assert claim(text, "rating") == rating


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("it is family friendly", {"yes"}),
        ("it is not family-friendly", {"no"}),
        ("it isn't kid friendly", {"no"}),
        ("a non-family friendly pub", {"no"}),
        ("children are welcome", {"yes"}),
        ("children are not welcome", {"no"}),
        ("not suitable for children", {"no"}),
        ("adults only", {"no"}),
        ("it is not cheap but family friendly", {"yes"}),
        ("no children. It is family friendly", {"yes", "no"}),
        ("a pub", set()),
    ],
)
def test_family_wordings(text: str, family: set[str]) -> None:
    assert claim(text, "family") == family


@pytest.mark.parametrize(
    ("text", "slot", "values"),
    [
        ("in the centre of the city", "area", {"city centre"}),
        ("not in the city centre", "area", set()),
        ("outside the city centre, by the river", "area", {"riverside"}),
        ("near Raja Indian Cuisine", "food", set()),
        ("near Café Sicilia", "type", set()),
        ("it does not serve Indian food", "food", set()),
        ("a sushi place", "food", {"japanese"}),
        ("fast-food", "food", {"fast food"}),
    ],
)
def test_other_wordings(text: str, slot: str, values: set[str]) -> None:
    assert claim(text, slot) == values


def test_value_that_no_pattern_knows_counts_where_it_stands_in_the_text() -> None:
    mr = "name[Cotto], food[Peruvian], music[live jazz]"
    assert errors(mr, "Cotto serves Peruvian food with live jazz.") == (0, 0, 0)
    assert errors(mr, "Cotto serves Thai food.") == (2, 0, 1)


def test_rate_sums_errors_and_slots_over_sentences() -> None:
    assert slot_error_rate([SlotErrors(8, 1, 0, 1), SlotErrors(2, 0, 1, 0)]) == pytest.approx(0.3)
    assert slot_error_rate([]) == 0.0


@given(
    st.fixed_dictionaries({slot: st.sampled_from(values) for slot, values in VALUES.items()}),
    st.sampled_from(sorted(VALUES)),
)
def test_leaving_out_a_slot_of_the_mr_never_adds_missing_ones(mr: dict[str, str], slot: str) -> None:
    text = ", ".join(f"{key} {value}" for key, value in mr.items())
    less = {key: value for key, value in mr.items() if key != slot}
    assert slot_errors(less, text).missing <= slot_errors(mr, text).missing


@given(st.text(max_size=200))
def test_any_text_is_counted(text: str) -> None:
    found = slot_errors(parse_mr(MILL), text)
    assert 0 <= found.missing <= 8
    assert found == slot_errors(parse_mr(MILL), unicodedata.normalize("NFC", text))


@pytest.mark.skipif(not CORPUS.exists(), reason="the E2E corpus (../shared/data/corpora) is not beside this checkout")
def test_people_err_on_an_eighth_of_the_slots_of_e2e() -> None:
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    found = [slot_errors(parse_mr(row["mr"]), row["ref"]) for row in rows]
    assert slot_error_rate(found) == pytest.approx(0.128, abs=0.005)
    assert sum(e.invented for e in found) / sum(e.slots for e in found) < 0.01
