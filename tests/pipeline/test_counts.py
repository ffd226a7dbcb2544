"""Counts read well whether there is one thing or several, in every text that people see."""

import re

import pytest

from flows.report.charts import Histogram
from flows.report.facts import PairFacts
from flows.report.findings.in_short import examples_of
from pipeline.types.counts import number_of
from tests.support.places import ROOT


@pytest.mark.parametrize(
    ("count", "nouns", "said"),
    [
        (1, ("step",), "1 step"),
        (0, ("step",), "0 steps"),
        (1200, ("step",), "1,200 steps"),
        (1.0, ("second",), "1 second"),
        (0.5, ("second",), "0.5 seconds"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
    ],
)
def test_a_count_has_the_noun_that_belongs_to_it(count: float, nouns: tuple[str, ...], said: str) -> None:
    assert number_of(count, *nouns) == said


@pytest.mark.parametrize(("kind", "said"), [("pair", "1 pair"), ("unpaired", "1 single response"), ("?", "1 example")])
def test_a_round_of_one_example(kind: str, said: str) -> None:
    none = Histogram((), ())
    assert examples_of(PairFacts(kind, 1, 1, {}, none, None, none)) == said


def test_plurals_are_made_in_one_place() -> None:
    made = re.compile(r"""\} [\w-]+\{['"]s['"]""")
    files = [file for top in ("flows", "pipeline", "reward_models") for file in (ROOT / top).rglob("*.py")]
    assert [str(file) for file in files if made.search(file.read_text(encoding="utf-8"))] == []
