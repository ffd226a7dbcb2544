"""Labelling keeps groups as they are and trusts no labeller's numbers."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.storage.rows import read_groups, write_groups
from pipeline.types import Group, Message, Prompt, Response
from reward_models.labeller import Labels, label

WINS = ((0.5, 0.75), (0.25, 0.5))


class Given:
    """A labeller that returns what it was made with."""

    def __init__(self, *labels: Labels) -> None:
        self.labels = list(labels)

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        return self.labels


def group(count: int) -> Group:
    responses = tuple(Response(str(n), (n,), (), "stop") for n in range(count))
    return Group(Prompt((Message("user", "p"),)), (1,), responses)


def test_labels_go_to_their_groups_and_through_a_file(tmp_path: Path) -> None:
    labelled = label([group(2), group(1)], Given(Labels((1.0, None), WINS, (0.5, None)), Labels((3.0,))))
    assert [g.scores for g in labelled] == [(1.0, None), (3.0,)]
    assert [g.wins for g in labelled] == [WINS, ()]
    assert [g.disagreement for g in labelled] == [(0.5, None), ()]
    assert labelled[0].responses == group(2).responses
    write_groups(tmp_path / "rows.parquet", labelled)
    assert list(read_groups(tmp_path)) == labelled


def test_part_of_a_group_keeps_what_is_known_of_it() -> None:
    wins = ((0.5, 0.1, 0.2), (0.9, 0.5, 0.3), (0.8, 0.7, 0.5))
    (whole,) = label([group(3)], Given(Labels((1.0, 2.0, 3.0), wins, (0.1, 0.2, 0.3))))
    part = whole.only([2, 0])
    assert [r.text for r in part.responses] == ["2", "0"]
    assert (part.scores, part.wins, part.disagreement) == ((3.0, 1.0), ((0.5, 0.8), (0.2, 0.5)), (0.3, 0.1))
    assert group(3).only([1]) == Group(group(3).prompt, (1,), group(3).responses[1:2])


def test_a_preference_is_the_labeller_s_own_or_by_score() -> None:
    assert Labels((0.0, 1.0), WINS).preference(0, 1) == 0.75
    scored = Labels((1.0, 2.0, 2.0, None))
    assert [scored.preference(0, 1), scored.preference(1, 0), scored.preference(1, 2)] == [0.0, 1.0, 0.5]
    assert scored.preference(0, 3) is None


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([Labels((1.0, 2.0))], "1 result for 2 prompts"),
        ([Labels((1.0,)), Labels((1.0,))], "1 score for 2 responses"),
        ([Labels((1.0, float("nan"))), Labels((1.0,))], "score nan"),
        ([Labels((1.0, 2.0)), Labels((float("inf"),))], "score inf"),
        ([Labels((1.0, 2.0), ((0.5, 1.5), (0.5, 0.5))), Labels((1.0,))], "win probability 1.5"),
        ([Labels((1.0, 2.0), ((0.5, 0.5),)), Labels((1.0,))], "wins are not a matrix of 2 x 2"),
        ([Labels((1.0, 2.0), (), (0.5,)), Labels((1.0,))], "disagreement on 1 of 2"),
        ([Labels((1.0, 2.0), (), (0.5, -1.0)), Labels((1.0,))], "disagreement -1.0"),
    ],
)
def test_labels_that_do_not_fit_end_the_run(labels: list[Labels], said: str) -> None:
    with pytest.raises(RunError, match=said):
        label([group(2), group(1)], Given(*labels))
