"""Pairs from groups and from texts: who wins, what is dropped and how it is counted."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Pairing
from pipeline.training.pairs import make_groups, make_pairs, win_probability
from pipeline.types import FinishReason, Group, Message, Prompt, Response
from tests.support.counted import counted

Rule = str


def response(token: int, text: str | None = None, finish: FinishReason = "stop") -> Response:
    return Response(f"text {token}" if text is None else text, (token, 0), (-1.0, -1.0), finish)


def group(*scores: float | None, name: str = "p") -> Group:
    prompt = Prompt((Message("user", name),))
    return Group(prompt, (7,), tuple(response(i + 1) for i in range(len(scores))), scores)


def winners(groups: list[Group], **settings: object) -> list[tuple[int, int]]:
    pairs, _ = counted(make_pairs, groups, Pairing.model_validate(settings), 1, 0)
    return [(p.chosen.token_ids[0], p.rejected.token_ids[0]) for p in pairs]


def drops(groups: list[Group], **settings: object) -> dict[str, int]:
    _, dropped = counted(make_pairs, groups, Pairing.model_validate(settings), 1, 0)
    return {cause: count for cause, count in dropped.items() if count}


def test_best_against_worst() -> None:
    pairs, dropped = counted(make_pairs, [group(1.0, 3.0, -2.0, 0.0)], Pairing(), 2, 0)
    (pair,) = pairs
    assert (pair.chosen.token_ids, pair.rejected.token_ids) == ((2, 0), (3, 0))
    assert (pair.chosen_score, pair.rejected_score, pair.round, pair.prompt_ids) == (3.0, -2.0, 2, (7,))
    causes = {
        "unfinished_thinking",
        "cut",
        "empty",
        "over_long",
        "missing_label",
        "disputed",
        "identical",
        "too_few",
        "tie",
        "margin",
        "length",
    }
    assert set(dropped) == {*causes, "near_duplicate", "capped"} and not any(dropped.values())


def test_win_probabilities_are_against_the_average_of_all_scored_responses() -> None:
    (pair,), _ = counted(make_pairs, [group(2.0, 0.0, None, 1.0)], Pairing(), 1, 0)
    wins = [1 / (1 + math.exp(-(2.0 - other))) for other in (2.0, 0.0, 1.0)]
    loses = [1 / (1 + math.exp(-(0.0 - other))) for other in (2.0, 0.0, 1.0)]
    assert pair.win_probability == pytest.approx(sum(wins) / 3)
    assert pair.win_probability_rejected == pytest.approx(sum(loses) / 3)
    (other,), _ = counted(make_pairs, [group(2.0, 0.0, None, 1.0)], Pairing(), 1, 0, "other")
    assert other.win_probability == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert other.win_probability_rejected == pytest.approx(1 / (1 + math.exp(2.0)))


def test_win_probabilities_are_the_labeller_s_where_it_compares() -> None:
    wins = ((0.5, 0.9, None), (0.1, 0.5, 0.3), (None, 0.7, 0.5))
    compared = replace(group(0.9, 0.2, 0.7), wins=wins)
    (pair,), _ = counted(make_pairs, [compared], Pairing(), 1, 0)
    assert pair.win_probability == pytest.approx(0.7) and pair.win_probability_rejected == pytest.approx(0.3)
    pairs, _ = counted(make_pairs, [compared], Pairing(rule="all"), 1, 0, "other")
    found = {(p.chosen.token_ids[0], p.rejected.token_ids[0]): p.win_probability for p in pairs}
    # The first and the third were not compared: half of 0.9 - 0.7 above a half.
    assert found == {(1, 2): 0.9, (3, 2): 0.7, (1, 3): pytest.approx(0.6)}
    (kept,), _ = counted(make_groups, [replace(compared, scores=(0.9, None, 0.7))], Pairing())
    assert kept.wins == ((0.5, None), (None, 0.5)) and kept.scores == (0.9, 0.7)


def test_responses_that_labellers_differ_on_can_be_left_out() -> None:
    disputed = replace(group(3.0, 2.0, 1.0), disagreement=(0.6, 0.5, None))
    assert winners([disputed], max_disagreement=0.5) == [(2, 3)] and winners([disputed]) == [(1, 3)]
    assert drops([disputed], max_disagreement=0.5) == {"disputed": 1}
    (kept,), _ = counted(make_groups, [disputed], Pairing(max_disagreement=0.5))
    assert kept.scores == (2.0, 1.0) and kept.disagreement == (0.5, None)


def test_a_response_drawn_twice_counts_twice_in_the_average() -> None:
    twice = Group(Prompt((Message("user", "p"),)), (7,), (response(1), response(1), response(2)), (1.0, 1.0, 0.0))
    (pair,), dropped = counted(make_pairs, [twice], Pairing(), 1, 0)
    assert dropped["identical"] == 1
    assert pair.win_probability == pytest.approx((0.5 + 0.5 + 1 / (1 + math.exp(-1.0))) / 3)


def test_a_win_probability_of_far_rewards_does_not_overflow() -> None:
    assert win_probability(1e4, [1e4, -1e4]) == 0.75 and win_probability(-1e4, [1e4, -1e4]) == 0.25


def test_groups_keep_every_usable_response_and_ties() -> None:
    prompt = Prompt((Message("user", "p"),))
    responses = (response(1), response(1), response(2, " "), response(3, finish="length"), response(4), response(5))
    mixed = Group(prompt, (7,), responses, (1.0, 2.0, 9.0, 9.0, None, 1.0))
    (kept,), dropped = counted(make_groups, [mixed, group(1.0, None)], Pairing(drop_cut=True, min_margin=3.0))
    assert [r.token_ids[0] for r in kept.responses] == [1, 5] and kept.scores == (1.0, 1.0)
    assert {cause: count for cause, count in dropped.items() if count} == {
        "cut": 1,
        "empty": 1,
        "missing_label": 2,
        "identical": 1,
        "too_few": 1,
    }
    assert "tie" not in dropped


def test_all_pairs_leave_out_ties() -> None:
    assert sorted(winners([group(1.0, 3.0, 1.0)], rule="all")) == [(2, 1), (2, 3)]
    assert drops([group(1.0, 3.0, 1.0)], rule="all") == {"tie": 1}


def test_random_pair_is_ordered_by_score_and_meets_every_two() -> None:
    seen = Counter(winners([group(1.0, 2.0, 3.0, name=str(n)) for n in range(300)], rule="random"))
    assert set(seen) == {(2, 1), (3, 1), (3, 2)} and min(seen.values()) > 60


def test_equally_good_responses_are_drawn_by_lot_that_does_not_depend_on_other_groups() -> None:
    groups = [group(5.0, 5.0, 1.0, name=str(n)) for n in range(200)]
    drawn = winners(groups)
    assert 60 < sum(pair == (1, 3) for pair in drawn) < 140
    assert winners(groups[::-1]) == drawn[::-1]
    assert winners(groups[100:]) == drawn[100:]


def test_differences_up_to_the_margin_are_ties() -> None:
    assert winners([group(1.0, 1.5)], min_margin=0.5) == []
    assert drops([group(1.0, 1.5)], min_margin=0.5) == {"tie": 1}
    assert winners([group(1.0, 1.6)], min_margin=0.5) == [(2, 1)]


def test_what_is_dropped_is_counted_by_cause() -> None:
    prompt = Prompt((Message("user", "p"),))
    responses = (response(1), response(1), response(2, " "), response(3, finish="length"), response(4), response(5))
    mixed = Group(prompt, (7,), responses, (1.0, 2.0, 9.0, 9.0, None, 0.0))
    assert winners([mixed], drop_cut=True) == [(1, 5)]
    assert drops([mixed], drop_cut=True) == {"identical": 1, "empty": 1, "cut": 1, "missing_label": 1}
    assert winners([mixed]) == [(3, 5)]
    assert drops([group(1.0, None), group(2.0)]) == {"missing_label": 1, "too_few": 2}


@pytest.mark.parametrize("rule", ["best_worst", "all", "random"])
def test_one_text_in_other_tokens_is_the_same_response(rule: Rule) -> None:
    prompt = Prompt((Message("user", "p"),))
    same = Group(prompt, (7,), (response(1, "pub"), response(2, "pub")), (1.0, 2.0))
    assert winners([same], rule=rule) == []
    assert drops([same], rule=rule) == {"identical": 1, "too_few": 1}
    cut = Group(prompt, (7,), (response(1, "pub"), response(2, "pub", finish="length")), (1.0, 2.0))
    assert winners([cut], rule=rule) == [(2, 1)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=1, max_size=5), max_size=5),
    st.sampled_from(["best_worst", "all", "random"]),
    st.sampled_from([0.0, 1.0]),
)
def test_no_pair_is_a_tie_or_has_equal_tokens(scores: list[list[float | None]], rule: Rule, margin: float) -> None:
    groups = [group(*given, name=str(n)) for n, given in enumerate(scores)]
    pairs, dropped = counted(make_pairs, groups, Pairing.model_validate({"rule": rule, "min_margin": margin}), 1, 0)
    for pair in pairs:
        assert pair.chosen_score is not None and pair.rejected_score is not None
        assert pair.chosen_score - pair.rejected_score > margin
        assert pair.chosen.token_ids != pair.rejected.token_ids
    if rule != "all":
        assert len(pairs) + dropped["tie"] + dropped["too_few"] == len(groups)


def test_unfinished_thinking_has_a_filter_of_its_own_beside_the_one_of_cut_responses() -> None:
    thought = Response("", (1, 2, 3), (-1.0,) * 3, "length", thinking_tokens=3, hidden_tokens=3, in_thought=True)
    cut = response(4, finish="length")
    given = Group(Prompt((Message("user", "p"),)), (7,), (thought, cut, response(5), response(6)), (0.0, 1.0, 2.0, 3.0))
    assert drops([given]) == {"unfinished_thinking": 1}
    assert drops([given], drop_cut=True) == {"unfinished_thinking": 1, "cut": 1}
    # Kept, it is an empty answer, and the worst one here.
    (pair,), dropped = counted(make_pairs, [given], Pairing(drop_unfinished_thinking=False), 1, 0)
    assert pair.rejected is thought and not any(dropped.values())


def test_lengths_and_likeness_are_those_of_what_labellers_see() -> None:
    def thinks(thought: tuple[int, ...], answer: tuple[int, ...]) -> Response:
        ids, hidden = thought + answer, len(thought)
        return Response(str(answer), ids, (-1.0,) * len(ids), "stop", thinking_tokens=hidden, hidden_tokens=hidden)

    short, long = thinks((1,), (2, 3, 4, 5)), thinks((1,) * 20, (2, 3, 4, 6))
    given = Group(Prompt((Message("user", "p"),)), (7,), (short, long), (0.0, 1.0))
    assert drops([given], max_response_tokens=4, max_length_difference=0.1) == {}
    assert drops([given], max_similarity=0.7) == {"near_duplicate": 1}
    assert drops([given], max_similarity=0.8) == {}
