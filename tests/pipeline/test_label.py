"""Labelling keeps groups as they are and trusts no scorer's numbers."""

from collections.abc import Sequence

import pytest

from pipeline.label import label
from pipeline.types import Group, Message, Prompt, Response, RunError


class Given:
    """A scorer that returns what it was made with."""

    def __init__(self, *scores: tuple[float | None, ...]) -> None:
        self.scores = list(scores)

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        return self.scores


def group(count: int) -> Group:
    responses = tuple(Response(str(n), (n,), (), "stop") for n in range(count))
    return Group(Prompt((Message("user", "p"),)), (1,), responses)


def test_scores_go_to_their_groups() -> None:
    labelled = label([group(2), group(1)], Given((1.0, None), (3.0,)))
    assert [g.scores for g in labelled] == [(1.0, None), (3.0,)]
    assert labelled[0].responses == group(2).responses


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([(1.0, 2.0)], "1 results for 2 prompts"),
        ([(1.0,), (1.0,)], "1 scores for 2 responses"),
        ([(1.0, float("nan")), (1.0,)], "score nan"),
        ([(1.0, 2.0), (float("inf"),)], "score inf"),
    ],
)
def test_scores_that_do_not_fit_end_the_run(scores: list[tuple[float | None, ...]], said: str) -> None:
    with pytest.raises(RunError, match=said):
        label([group(2), group(1)], Given(*scores))
