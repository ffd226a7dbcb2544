"""Which pairs a rule takes, and under which cause it counts what it leaves."""

from collections import Counter

import pytest

from pipeline.config import Pairing
from pipeline.errors import UserError
from pipeline.training.pairs import make_groups, make_marked, make_pairs
from pipeline.types import Group, Message, Prompt, Response
from tests.support.counted import counted

Tokens = tuple[int, ...]


def response(*ids: int) -> Response:
    return Response(f"text {ids}", ids, (-1.0,) * len(ids), "stop")


def group(*scored: tuple[Tokens, float], name: str = "p") -> Group:
    responses = tuple(response(*ids) for ids, _ in scored)
    return Group(Prompt((Message("user", name),)), (7,), responses, tuple(score for _, score in scored))


def of_scores(*scores: float, name: str = "p") -> Group:
    return group(*(((index, 0), score) for index, score in enumerate(scores)), name=name)


def made(groups: list[Group], **settings: object) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """Scores of chosen and rejected, and what was dropped."""
    pairs, dropped = counted(make_pairs, groups, Pairing.model_validate(settings), 1, 0)
    found = [(pair.chosen_score or 0.0, pair.rejected_score or 0.0) for pair in pairs]
    return found, {cause: count for cause, count in dropped.items() if count}


def test_the_margin_band_narrows_what_the_rule_chooses_from() -> None:
    five = of_scores(0.0, 1.0, 3.0, 7.0)
    assert made([five], max_margin=4.0) == ([(7.0, 3.0)], {})
    assert made([five], min_margin=1.0, max_margin=3.0) == ([(3.0, 0.0)], {})
    assert made([of_scores(0.0, 9.0)], max_margin=4.0) == ([], {"margin": 1})
    assert made([of_scores(5.0, 5.0, 9.0)], max_margin=3.0) == ([], {"margin": 1})


def test_closest_is_the_smallest_margin_above_the_least() -> None:
    assert made([of_scores(0.0, 1.0, 3.0, 7.0)], rule="closest") == ([(1.0, 0.0)], {})
    assert made([of_scores(0.0, 1.0, 3.0, 7.0)], rule="closest", min_margin=1.0) == ([(3.0, 1.0)], {})


def test_lengths_are_matched_in_tokens() -> None:
    mixed = group(((1,) * 10, 0.0), ((2,) * 9, 1.0), ((3,) * 20, 5.0))
    assert made([mixed]) == ([(5.0, 0.0)], {})
    assert made([mixed], max_length_difference=0.1) == ([(1.0, 0.0)], {})
    assert made([mixed], max_length_difference=0.09) == ([], {"length": 1})


def test_best_against_any_other() -> None:
    seen = Counter(made([of_scores(0.0, 1.0, 2.0, 9.0, name=str(n))], rule="best_random")[0][0] for n in range(300))
    assert set(seen) == {(9.0, 0.0), (9.0, 1.0), (9.0, 2.0)} and min(seen.values()) > 60


def test_the_median_splits_a_group_into_two_halves_of_pairs() -> None:
    assert made([of_scores(0.0, 1.0, 3.0, 7.0)], rule="median_split") == ([(7.0, 1.0), (3.0, 0.0)], {})
    assert made([of_scores(0.0, 1.0, 3.0)], rule="median_split") == ([(3.0, 0.0)], {})
    assert made([of_scores(1.0, 1.0, 1.0, 7.0)], rule="median_split") == ([(7.0, 1.0)], {"tie": 1})


def test_all_pairs_up_to_a_cap_by_lot() -> None:
    four = of_scores(0.0, 1.0, 3.0, 7.0)
    assert len(made([four], rule="all")[0]) == 6
    pairs, dropped = made([four], rule="all", max_pairs=2)
    assert len(set(pairs)) == 2 and dropped == {"capped": 4}
    drawn = Counter(
        p for n in range(300) for p in made([of_scores(0.0, 1.0, 3.0, name=str(n))], rule="all", max_pairs=1)[0]
    )
    assert set(drawn) == {(1.0, 0.0), (3.0, 0.0), (3.0, 1.0)} and min(drawn.values()) > 60


def test_near_duplicates_make_no_pair() -> None:
    alike = group(((1, 2, 3, 4), 0.0), ((1, 2, 3, 5), 1.0))
    # One edit of four tokens: similarity 0.75.
    assert made([alike], max_similarity=0.75) == ([(1.0, 0.0)], {})
    assert made([alike], max_similarity=0.7) == ([], {"near_duplicate": 1})
    (kept,), dropped = counted(
        make_groups, [group(((1, 2, 3, 4), 0.0), ((1, 2, 3, 5), 1.0), ((9,), 2.0))], Pairing(max_similarity=0.7)
    )
    assert kept.scores == (0.0, 2.0) and dropped["near_duplicate"] == 1


def test_long_responses_are_left_out() -> None:
    assert made([group(((1,) * 3, 0.0), ((2,) * 4, 9.0), ((3,), 1.0))], max_response_tokens=3) == (
        [(1.0, 0.0)],
        {"over_long": 1},
    )


def test_marked_responses_are_good_above_the_threshold_and_bad_below() -> None:
    settings = Pairing(rule="marked")
    marked, dropped = counted(make_marked, [of_scores(0.0, 1.0, 5.0)], settings)
    assert [(row.response.token_ids[0], row.desirable) for row in marked] == [(0, False), (1, False), (2, True)]
    assert dropped["tie"] == 0
    marked, dropped = counted(make_marked, [of_scores(0.0, 0.5, 1.0)], Pairing(rule="marked", threshold=0.5))
    assert [row.desirable for row in marked] == [False, True] and dropped["tie"] == 1
    marked, _ = counted(make_marked, [of_scores(1.0)], Pairing(rule="marked", threshold=0.5, min_margin=0.4))
    assert [row.desirable for row in marked] == [True]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_margin": 1.0, "min_margin": 1.0}, "max_margin: 1 must be above min_margin, 1"),
        ({"max_pairs": 2}, "max_pairs: rule best_worst does not read it"),
        ({"threshold": 0.5}, "threshold: rule best_worst does not read it"),
        ({"rule": "marked", "max_margin": 1.0}, "max_margin: rule marked makes no pairs"),
        ({"max_similarity": 1.0}, "max_similarity"),
    ],
)
def test_settings_that_a_rule_does_not_read_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, UserError), match=said):
        Pairing.model_validate(settings)
