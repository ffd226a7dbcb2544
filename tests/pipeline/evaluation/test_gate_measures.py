"""What the gate measures, on responses whose numbers are known."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.evaluation.gate_measures import Measuring, by_prompt, finished, longer, repeating, tokens
from pipeline.evaluation.metrics import wins_by_score
from pipeline.types import Group, Message, Prompt, Response

MEASURING = Measuring(200, 0)


def group(number: int, text: str, score: float | None = None, stops: bool = True) -> Group:
    """One response, a token a word."""
    ids = tuple(range(len(text.split())))
    answered = Response(text, ids, (-1.0,) * len(ids), "stop" if stops else "length")
    scores = () if score is None else (score,)
    return Group(Prompt((Message("user", str(number)),)), (1,), (answered,), scores)


def side(lengths: Sequence[int], scores: Sequence[float] | None = None) -> list[Group]:
    """Responses of so many words, no two words alike."""
    texts = [" ".join(f"w{n}-{i}" for i in range(length)) for n, length in enumerate(lengths)]
    return [group(n, text, None if scores is None else scores[n]) for n, text in enumerate(texts)]


def test_ratio_and_difference_are_taken_on_the_prompts_that_both_have() -> None:
    ours, theirs = side([10, 20, 90]), side([5, 10])
    found = MEASURING.ratio(by_prompt(ours, tokens), by_prompt(theirs, tokens))
    assert found is not None and found.mean == 2 and found.low == found.high == 2
    assert MEASURING.ratio({}, by_prompt(theirs, tokens)) is None
    fewer = MEASURING.difference({"a": 1.0, "b": 0.0, "c": 5.0}, {"a": 0.0, "b": 0.0})
    assert fewer is not None and fewer.mean == 0.5
    # Two prompts tell next to nothing.
    assert fewer.low < -0.4 and fewer.high > 0.9


def test_lengths_of_cut_responses_do_not_count_among_finished_ones() -> None:
    ours = [group(0, "a b"), group(1, "a b c d")]
    theirs = [group(0, "a b c d e f"), group(1, "a " * 50, stops=False)]
    found = MEASURING.finished_length_ratio(ours, theirs)
    assert found is not None and found.mean == pytest.approx(3 / 6)
    assert MEASURING.finished_length_ratio(ours, [group(0, "a", stops=False)]) is None
    assert by_prompt(theirs, finished) == {theirs[0].prompt.id: 1.0, theirs[1].prompt.id: 0.0}


def test_repeating_is_saying_four_words_twice() -> None:
    assert repeating(group(0, "It is a pub. it is a pub!").responses[0]) == 1
    assert repeating(group(0, "It is a pub and a bar").responses[0]) == 0


def test_a_gain_counts_in_the_starts_spread_whatever_the_scale() -> None:
    for scale in (1.0, 50.0):
        start = side([3] * 4, [scale * score for score in (0, 2, 0, 2)])
        end = side([3] * 4, [scale * score for score in (2, 4, 2, 4)])
        found = MEASURING.gain(end, start)
        assert found is not None and found.mean == pytest.approx(2.0)
    alike = MEASURING.gain(side([3, 3], [1, 1]), side([3, 3], [0, 0]))
    assert alike is not None and alike.mean == pytest.approx(2.0)
    assert MEASURING.gain(side([3]), side([3])) is None
    assert MEASURING.length_slope(side([3]), side([4])) is None and MEASURING.length_share(side([3]), side([4])) is None


def test_a_few_large_losses_outweigh_many_small_gains_in_the_mean_reward_but_not_in_the_wins() -> None:
    before = [2.0] * 100
    after = [2.1] * 70 + [-1.0] * 30
    change = MEASURING.reward_change(side([3] * 100, after), side([3] * 100, before))
    assert change is not None and change.mean == pytest.approx(0.7 * 0.1 - 0.3 * 3.0) and change.high < 0
    wins = MEASURING.rate(wins_by_score(side([3] * 100, after), side([3] * 100, before)))
    assert wins is not None and wins.mean == 0.7 and wins.low > 0.5
    assert MEASURING.reward_change([], side([3], [1.0])) is None


def test_a_reward_for_length_is_all_length_and_a_reward_for_content_is_not() -> None:
    draw = random.Random(0)
    before, after = [draw.randint(5, 15) for _ in range(60)], [draw.randint(15, 40) for _ in range(60)]
    paid = MEASURING.length_share(side(after, [2.0 * n for n in after]), side(before, [2.0 * n for n in before]))
    assert paid is not None and paid.low == pytest.approx(1) and paid.high == pytest.approx(1)
    slope = MEASURING.length_slope(side(after, [2.0 * n for n in after]), side(before, [2.0 * n for n in before]))
    assert slope is not None and slope.mean == pytest.approx(2.0)
    honest = MEASURING.length_share(
        side(after, [1 + draw.random() for _ in after]), side(before, [draw.random() for _ in before])
    )
    assert honest is not None and honest.high < 0.8
    # Of no gain there is no share.
    assert MEASURING.length_share(side(after, [0.0] * 60), side(before, [0.0] * 60)) is None


def test_wins_by_length_vanish_at_equal_length_and_others_stay() -> None:
    draw = random.Random(1)
    ours, theirs = [draw.randint(10, 30) for _ in range(100)], [draw.randint(8, 24) for _ in range(100)]
    for_length = wins_by_score(side(ours, [float(n) for n in ours]), side(theirs, [float(n) for n in theirs]))
    raw, controlled = (
        MEASURING.rate(for_length),
        MEASURING.length_controlled(for_length, longer(side(ours), side(theirs))),
    )
    assert raw is not None and controlled is not None
    assert raw.low > 0.6 and controlled.low < 0.5 < controlled.high
    better = wins_by_score(side(ours, [0.4 + draw.random() for _ in ours]), side(theirs, [draw.random() for _ in ours]))
    raw, controlled = MEASURING.rate(better), MEASURING.length_controlled(better, longer(side(ours), side(theirs)))
    assert raw is not None and controlled is not None
    assert controlled.low > 0.6 and abs(controlled.mean - raw.mean) < 0.1


def test_where_every_win_is_longer_nothing_is_known_of_equal_length() -> None:
    wins, apart = {str(n): 1.0 for n in range(50)}, {str(n): 10.0 + n % 5 for n in range(50)}
    found = MEASURING.length_controlled(wins, apart)
    assert found is not None and 0.4 < found.mean < 0.75
    even = MEASURING.length_controlled({"a": 1.0, "b": 1.0, "c": 0.0}, dict.fromkeys("abc", 0.0))
    assert even is not None and 0.5 < even.mean < 0.7


def test_the_regression_at_equal_length_is_that_of_a_grid_search() -> None:
    draw = np.random.default_rng(3)
    x = draw.normal(size=300)
    won = (draw.random(300) < 1 / (1 + np.exp(-(0.7 + 1.5 * np.tanh(x))))).astype(float)
    found = MEASURING.length_controlled(dict(enumerate_keys(won)), dict(enumerate_keys(x * 7)))
    t = np.append(np.tanh(x * 7 / (x * 7).std()), 0.0)
    y = np.append(won, 0.5)

    def loss(a: float, b: float) -> float:
        z = a + b * t
        return float((np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y)).sum())

    grid = [(a, b) for a in np.arange(0, 1.6, 0.02) for b in np.arange(0.5, 3, 0.02)]
    best = min(grid, key=lambda at: loss(*at))
    assert found is not None and found.mean == pytest.approx(1 / (1 + np.exp(-best[0])), abs=0.01)


def enumerate_keys(values: Sequence[float]) -> list[tuple[str, float]]:
    return [(str(index), float(value)) for index, value in enumerate(values)]


def test_saying_the_same_to_every_prompt_is_seen_whatever_its_length() -> None:
    varied, same = side([20] * 40), [group(n, " ".join(f"s{i}" for i in range(40))) for n in range(40)]
    fallen = MEASURING.distinct_ratio(same, varied)
    assert fallen is not None and fallen.high < 0.1
    # Twice as long and as varied is as distinct: equally many words are compared.
    kept = MEASURING.distinct_ratio(side([40] * 40), varied)
    assert kept is not None and kept.mean == pytest.approx(1.0, abs=0.05)
    assert MEASURING.distinct_ratio([], varied) is None
