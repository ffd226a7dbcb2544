"""Length over rounds, small: SimPO's answers shrink, the gate's rule sees it, and pairs of like length hold it up."""

import torch

from tests.studies import collapse
from tests.studies.length import END, expected, start_values, tied


def test_three_rounds_of_simpo_shrink_answers_and_pairs_of_like_length_do_not() -> None:
    start = expected(tied(start_values()))[0]
    free, cured = (collapse.course(collapse.ARMS[name], 0, rounds=3) for name in (collapse.COLLAPSING, collapse.CURED))
    assert free[2].length < 0.4 * start < cured[2].length
    assert free[2].good > 0.8 and free[2].broken == ("shrinking",) and not free[2].earlier


def test_pairs_are_told_apart_and_of_the_lengths_that_are_allowed() -> None:
    for name in ("SimPO, best and worst of like length", collapse.CURED):
        arm, draw = collapse.ARMS[name], torch.Generator().manual_seed(0)
        chosen, rejected = collapse.pairs_of(tied(start_values()), arm, draw)
        assert len(chosen.tokens) > 5 and bool((chosen.goodness() > rejected.goodness()).all())
        shorter, longer = (of(chosen.lengths(), rejected.lengths()) for of in (torch.minimum, torch.maximum))
        assert bool((shorter >= (1 - arm.closest) * longer).all())
        assert bool((chosen.ended() & rejected.ended()).all())


def test_the_gate_is_given_what_the_evaluation_gives_it() -> None:
    groups = collapse.groups_of(tied(start_values()), 1)
    ids = {group.responses[0].token_ids[-1] == END for group in groups if group.responses[0].finish_reason == "stop"}
    assert ids == {True} and len({group.prompt.id for group in groups}) == collapse.HELD_OUT
    assert collapse.broken_rules(collapse.DEFAULT, 1, groups, groups, groups) == ()


def test_a_policy_that_comes_to_the_point_once_is_not_stopped() -> None:
    assert not any(collapse.honest_course("one step", 0))
