"""Several labellers as one, against values worked out by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.config import EnsembleScorer
from pipeline.types import Group, Message, Prompt, Response
from reward_models.ensemble import Ensemble
from reward_models.labeller import Labels

GROUP = Group(Prompt((Message("user", "p"),)), (1,), tuple(Response(str(n), (n,), (), "stop") for n in range(2)))
FIRST = Labels((1.0, 4.0), ((0.5, 0.2), (0.8, 0.5)))
SECOND = Labels((3.0, None), ((0.5, 0.6), (0.4, 0.5)))


class Given:
    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        return [self.labels for _ in groups]


def merged(*labels: Labels, members: Sequence[dict[str, Any]] = ({}, {}), **given: Any) -> Labels:
    sections = [{"scorer": {"kind": "length"}, **member} for member in members]
    settings = EnsembleScorer.model_validate({"members": sections, **given})
    return Ensemble(settings, [Given(one) for one in labels]).label([GROUP])[0]


def test_mean_minimum_and_penalty() -> None:
    # Weights 3 and 1: mean (3 x 1 + 1 x 3) / 4 = 1.5, variance (3 x 0.25 + 1 x 2.25) / 4 = 0.75.
    weights = ({"weight": 3.0}, {"weight": 1.0})
    spread = 0.75**0.5
    for combine, score in (("mean", 1.5), ("min", 1.0), ("penalised", 1.5 - 2 * spread)):
        more = {"penalty": 2.0} if combine == "penalised" else {}
        found = merged(FIRST, SECOND, members=weights, combine=combine, **more)
        assert found.scores == (pytest.approx(score), None) and found.disagreement == (pytest.approx(spread), None)
    assert merged(FIRST, SECOND, quorum=1).scores == (2.0, 4.0)


def test_members_are_brought_to_one_scale() -> None:
    found = merged(FIRST, SECOND, members=({"offset": 1.0, "scale": 3.0}, {"offset": 3.0}), quorum=1)
    assert found.scores == (0.0, 1.0) and found.disagreement == (0.0, None)


def test_wins_are_merged_where_all_compare() -> None:
    found = merged(FIRST, SECOND, members=({"weight": 3.0}, {"weight": 1.0}))
    assert found.wins == ((0.5, pytest.approx(0.3)), (pytest.approx(0.7), 0.5))
    assert merged(FIRST, Labels((1.0, 2.0))).wins == ()
