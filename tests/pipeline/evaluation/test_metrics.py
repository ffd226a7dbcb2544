"""Evaluation against numbers worked out by hand."""

import random

import pytest

from pipeline.data.tasks.slots import slot_metrics
from pipeline.errors import RunError
from pipeline.evaluation.metrics import describe_responses, distinct_ngrams, kl_interval, win_rate
from pipeline.types import FinishReason, Group, Message, Prompt, Response

Said = tuple[str, int, FinishReason]


def group(name: str, *scores: float | None, said: tuple[Said, ...] | None = None, answer: str | None = None) -> Group:
    said = said or tuple(("word", 2, "stop") for _ in scores)
    responses = tuple(Response(text, tuple(range(tokens)), (), finish) for text, tokens, finish in said)
    return Group(Prompt((Message("user", name),), answer=answer), (1,), responses, scores)


def test_win_rate_counts_ties_half_and_prompts_alike() -> None:
    ours = [group("a", 2.0), group("b", 1.0), group("c", 0.0, 3.0), group("only ours", 9.0)]
    theirs = [group("c", 1.0, 1.0), group("b", 1.0), group("a", 1.0), group("only theirs", 9.0)]
    assert win_rate(ours, theirs).mean == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert win_rate(ours, ours).mean == 0.5


def test_prompts_without_scores_do_not_count() -> None:
    assert win_rate([group("a", None), group("b", 2.0)], [group("a", 1.0), group("b", 1.0)]).mean == 1.0
    with pytest.raises(RunError, match="no prompt has scores"):
        win_rate([group("a", None)], [group("a", 1.0)])


def test_several_responses_to_a_prompt_are_one_row_of_the_kl_interval() -> None:
    draw = random.Random(0)
    rates = [draw.gauss(0.5, 0.2) for _ in range(40)]
    once = kl_interval([group(str(n), 0.0) for n in range(40)], *logps(rates), 500, 0)
    # Eight equal responses to each prompt tell nothing more of other prompts.
    groups = [group(str(n), *[0.0] * 8) for n in range(40)]
    again = kl_interval(groups, *logps([rate for rate in rates for _ in range(8)]), 500, 0)
    assert once is not None and again is not None
    assert (again.low, again.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert once.high - once.low == pytest.approx(2 * 2.02 * 0.2 / 40**0.5, rel=0.25)
    assert once.mean == pytest.approx(sum(rates) / 40)
    assert kl_interval([], [], [], 500, 0) is None


def logps(rates: list[float]) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Responses of two tokens, ``rate`` nats per token likelier under the policy than under the other."""
    return [(-1.0, -2.0)] * len(rates), [(-1.0 - rate, -2.0 - rate) for rate in rates]


def test_describe_averages_over_responses() -> None:
    said: tuple[Said, ...] = (("a b a b", 5, "stop"), ("a b c", 3, "length"))
    metrics = describe_responses([group("p", 1.0, None, said=said), group("q", 4.0)])
    assert metrics["reward"] == 2.5
    assert metrics["response_length"] == pytest.approx(10 / 3)
    assert metrics["stop_rate"] == pytest.approx(2 / 3)
    assert metrics["distinct_1"] == pytest.approx(4 / 8)
    assert metrics["distinct_2"] == pytest.approx(3 / 5)
    assert metrics["repetition_rate"] == 0
    assert "reward" not in describe_responses([group("p", None)])


def test_repetition_is_four_words_said_again() -> None:
    said: tuple[Said, ...] = (
        ("It is near the river. It is near the harbour.", 9, "stop"),
        ("It is near a pub and it is near a hill, so", 9, "stop"),
        ("It is near, and it is far", 9, "stop"),
    )
    assert describe_responses([group("p", 1.0, 1.0, 1.0, said=said)])["repetition_rate"] == pytest.approx(2 / 3)


def test_distinct_of_nothing_is_zero() -> None:
    assert distinct_ngrams([["a"]], 2) == 0.0


def test_slot_errors_greedy_and_sampled() -> None:
    mr = "name[Bluebell], food[Thai], area[harbour], family[yes]"
    right = "Bluebell serves Thai food at the harbour and is family friendly."
    wrong = "Bluebell serves French food near Bell Tower and is family friendly."
    greedy = [group("p", 4.0, said=((right, 9, "stop"),), answer=mr)]
    sampled = [group("p", 4.0, 0.0, said=((right, 9, "stop"), (wrong, 9, "stop")), answer=mr)]
    metrics = slot_metrics(greedy, sampled)
    assert metrics["slot_error_rate"] == 0
    assert metrics["slot_error_rate_sampled"] == pytest.approx(4 / 8)
    assert metrics["slots_missing_sampled"] == pytest.approx(2 / 8)
    assert metrics["slots_invented_sampled"] == pytest.approx(1 / 8)
    assert metrics["slots_contradictory_sampled"] == pytest.approx(1 / 8)
