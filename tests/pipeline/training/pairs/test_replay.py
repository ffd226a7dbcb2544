"""How much of earlier rounds is drawn, which, and how far back."""

import pytest

from pipeline.config import Replay
from pipeline.training.pairs import ages_within_drift, draw, drop_repeated, shares
from pipeline.types import Message, Pair, Prompt, Response
from tests.support.counted import counted


def pools(*sizes: int) -> dict[int, range]:
    return {age: range(size) for age, size in enumerate(sizes, 1)}


def test_shares_are_of_all_that_the_round_trains_on() -> None:
    assert shares(100, Replay(share=0.5)) == (100, 0)
    assert shares(60, Replay(share=0.3, anchor=0.1)) == (30, 10)
    assert shares(90, Replay(anchor=0.1)) == (0, 10)


def test_each_round_of_age_gets_less() -> None:
    drawn = draw(pools(100, 100, 100), 70, 0.5, seed=0, round_=4)
    assert {age: len(places) for age, places in drawn.items()} == {1: 40, 2: 20, 3: 10}
    assert {age: len(places) for age, places in draw(pools(100, 100), 70, 1.0, 0, 3).items()} == {1: 35, 2: 35}


def test_what_a_small_pool_lacks_the_others_make_up() -> None:
    drawn = draw(pools(3, 100, 0), 30, 0.5, 0, 4)
    assert {age: len(places) for age, places in drawn.items()} == {1: 3, 2: 27}
    everything = draw(pools(3, 4), 30, 0.5, 0, 3)
    assert everything == {1: [0, 1, 2], 2: [0, 1, 2, 3]}
    assert draw({}, 5, 0.5, 0, 1) == {}


def test_lots_follow_seed_round_and_age_alone() -> None:
    first = draw(pools(50, 50), 20, 0.5, 0, 3)
    assert draw(pools(50, 50), 20, 0.5, 0, 3) == first != draw(pools(50, 50), 20, 0.5, 1, 3)
    assert first[1] != draw(pools(50, 50), 20, 0.5, 0, 4)[1]
    assert all(len(set(places)) == len(places) for places in first.values())


def test_a_round_that_drifted_too_far_bars_those_before_it() -> None:
    assert ages_within_drift({1: 0.1, 2: 0.4, 3: 0.2}, 0.3) == [1]
    assert ages_within_drift({1: 0.1, 2: 0.3, 3: 0.2}, 0.3) == [1, 2, 3]
    assert ages_within_drift({1: 0.5}, 0.3) == []


def test_what_was_trained_on_is_dropped_token_for_token() -> None:
    def pair(chosen: int, rejected: int) -> Pair:
        sides = [Response("t", (token,), (), "stop") for token in (chosen, rejected)]
        return Pair(Prompt((Message("user", "p"),)), (7,), *sides)

    kept, dropped = counted(drop_repeated, [pair(1, 2), pair(2, 1), pair(1, 3), pair(1, 3)], [pair(1, 2)])
    assert [row.id for row in kept] == [pair(2, 1).id, pair(1, 3).id] and dropped == {"repeated": 2}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "replay nothing"),
        ({"share": 0.6, "anchor": 0.4}, "leave no room for the round's own"),
        ({"anchor": 0.2, "max_age": 2}, "max_age: share is 0"),
    ],
)
def test_settings_that_replay_nothing_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Replay.model_validate(settings)
