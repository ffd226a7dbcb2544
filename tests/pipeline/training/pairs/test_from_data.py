"""A data set's texts as tokens: end tokens, cuts, counts, and the numbers that go with a pair."""

import math
from collections.abc import Sequence

import pytest

from pipeline.config import ChatSettings
from pipeline.training.pairs.from_data import tokenise_groups, tokenise_pairs, tokenise_unpaired
from pipeline.types import FinishReason, Message, Pair, Prompt, Response, TextGroup, TextPair, UnpairedText
from tests.support.counted import counted


class Thoughtless:
    """Responses without thoughts."""

    def response(
        self,
        prompt_ids: Sequence[int],
        ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: FinishReason,
        given: Message | None = None,
    ) -> Response:
        return Response("" if given is None else given.shown, tuple(ids), tuple(logprobs), finish_reason)


class Letters:
    """A chat whose tokens are letters; 0 ends a turn."""

    end_ids = frozenset({0})

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.thoughts = Thoughtless()

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(map(ord, messages[-1].content))

    def response_ids(
        self, messages: Sequence[Message], text: str, finished: bool = True, extra: str = ""
    ) -> tuple[int, ...]:
        return (*map(ord, text), 0)[: self.limit]


LIMITS = ChatSettings(max_prompt_tokens=3, max_response_tokens=4)


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def texts(*rows: tuple[str, str, str]) -> list[TextPair]:
    return [TextPair(prompt(p), c, r, soft_label=0.9) for p, c, r in rows]


def test_texts_become_tokens_with_an_end_token_where_they_fit() -> None:
    rows = texts(("abc", "yes", "no"), ("p", "long text", "four"))
    (short, long), dropped = counted(tokenise_pairs, rows, Letters(4), LIMITS)
    assert short.chosen.token_ids == (*map(ord, "yes"), 0) and short.chosen.finish_reason == "stop"
    assert short.chosen.logprobs == () and short.soft_label == 0.9 and short.round == 0
    assert long.chosen.token_ids == tuple(map(ord, "long")) and long.chosen.finish_reason == "length"
    assert long.rejected.token_ids == tuple(map(ord, "four")) and long.rejected.finish_reason == "length"
    assert dropped == {"long_prompt": 0, "empty": 0, "identical": 0, "cut": 2}


@pytest.mark.parametrize(
    ("row", "cause"),
    [(("abcd", "y", "n"), "long_prompt"), (("p", " ", "n"), "empty"), (("p", "longer", "longest"), "identical")],
)
def test_texts_that_cannot_be_a_pair_are_counted(row: tuple[str, str, str], cause: str) -> None:
    pairs, dropped = counted(tokenise_pairs, texts(row), Letters(4), LIMITS)
    assert pairs == [] and {c for c, n in dropped.items() if n} == {cause}


def tokenised(pair: TextPair, **against: str) -> Pair:
    (found,), _ = counted(tokenise_pairs, [pair], Letters(4), LIMITS, **against)  # type: ignore[arg-type]
    return found


def test_a_pair_keeps_its_scores_and_priors() -> None:
    found = tokenised(TextPair(prompt("p"), "y", "n", 2.0, 1.0, 0.8, 0.6, 0.3, -1.5, -2.5))
    assert (found.chosen_score, found.rejected_score, found.soft_label) == (2.0, 1.0, 0.8)
    assert (found.win_probability, found.win_probability_rejected) == (0.6, 0.3)
    assert (found.chosen_prior, found.rejected_prior) == (-1.5, -2.5)


def test_a_missing_win_probability_comes_of_scores_or_else_of_the_label() -> None:
    hard = tokenised(TextPair(prompt("p"), "y", "n"))
    assert (hard.win_probability, hard.win_probability_rejected) == (1.0, 0.0)
    soft = tokenised(TextPair(prompt("p"), "y", "n", soft_label=0.75))
    assert (soft.win_probability, soft.win_probability_rejected) == (0.75, 0.25)
    half = tokenised(TextPair(prompt("p"), "y", "n", win_probability=0.75, chosen_score=9.0, rejected_score=0.0))
    assert (half.win_probability, half.win_probability_rejected) == (0.75, 0.25)
    scored = TextPair(prompt("p"), "y", "n", chosen_score=1.0, rejected_score=0.0, soft_label=0.9)
    wins = 1 / (1 + math.exp(-1.0))
    assert tokenised(scored).win_probability == pytest.approx((0.5 + wins) / 2)
    assert tokenised(scored).win_probability_rejected == pytest.approx((0.5 + 1 - wins) / 2)
    assert tokenised(scored, opponent="other").win_probability == pytest.approx(wins)


def test_groups_keep_all_responses_with_their_rewards() -> None:
    rows = [
        TextGroup(prompt("p"), ("y", "long text", " "), (1.0, 2.0, 3.0)),
        TextGroup(prompt("abcd"), ("y", "n"), (0, 1)),
    ]
    (found,), dropped = counted(tokenise_groups, rows, Letters(4), LIMITS)
    assert found.prompt_ids == (ord("p"),) and found.scores == (1.0, 2.0, 3.0)
    assert [r.token_ids for r in found.responses[:2]] == [(ord("y"), 0), tuple(map(ord, "long"))]
    assert [r.finish_reason for r in found.responses] == ["stop", "length", "stop"]
    assert dropped == {"long_prompt": 1, "cut": 1}


def test_marked_responses_keep_their_marks() -> None:
    rows = [
        UnpairedText(prompt(p), text, mark) for p, text, mark in (("p", "y", True), ("q", " ", True), ("r", "n", False))
    ]
    found, dropped = counted(tokenise_unpaired, rows, Letters(4), LIMITS)
    assert [(row.prompt_ids, row.response.token_ids, row.desirable) for row in found] == [
        ((ord("p"),), (ord("y"), 0), True),
        ((ord("r"),), (ord("n"), 0), False),
    ]
    assert dropped == {"long_prompt": 0, "empty": 1, "identical": 0, "cut": 0}
