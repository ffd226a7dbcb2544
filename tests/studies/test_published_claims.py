"""The studies as a command runs them, with their five seeds: what held and what did not is what RESULTS.md says."""

from collections.abc import Sequence

import pytest

from tests.studies import accelerated, collapse, frontiers, gpo, length, rewards, value
from tests.studies.study_report import RESULTS, Study, draw, markdown

# name -> the study, and what stands before each claim that does not hold.
STUDIES: dict[str, tuple[Study, Sequence[str]]] = {
    "gpo": (gpo.study, ()),
    "rewards": (rewards.study, ()),
    "accelerated": (accelerated.study, ()),
    "value": (value.study, ("optimism at α = 1", "optimism at α = 0.3", "the wrong sign")),
    "length": (length.study, ()),
    "collapse": (collapse.study, ("the gate with its default", "pairs of equal length")),
    "frontiers": (frontiers.study, ("TDPO1", "TDPO2", "SparsePO", "MallowsPO-θ", "MallowsPO-φ", "SimPO")),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_finds_what_was_recorded(name: str) -> None:
    study, failing = STUDIES[name]
    report = study(range(5))
    for claim in report.claims:
        assert claim.held != claim.said.startswith(tuple(failing)), f"{claim.said}: {claim.measured}, {claim.bar}"
    assert "| claim " in markdown(report) and len(draw(report.panels)) < 60_000


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_its_section_with_a_picture(name: str) -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert f"python -m tests.studies.{name} --record" in text and f"(pictures/{name}.svg)" in text
    assert RESULTS.with_name("pictures").joinpath(f"{name}.svg").stat().st_size < 60_000
