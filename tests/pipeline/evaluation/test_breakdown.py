"""Held-out measures by source and criterion, and a gate's rule on a suite."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest

from flows.report.findings.gate_reasons import gate_reasons
from flows.report.findings.parts import part_table
from pipeline.config import Gate
from pipeline.evaluation.breakdown import ByPart, PartNames, by_criterion, kl_by_part, parts_together, reward_measures
from pipeline.evaluation.gate import Standing, decide
from pipeline.evaluation.intervals import Interval
from pipeline.types import Group, Message, Prompt, Response

Scores = tuple[float | None, ...]


def group(name: str, source: str, scores: Scores, rubric: str = "", criteria: tuple[Scores, ...] = ()) -> Group:
    responses = tuple(Response(f"{name} {n}", (1,) * (n + 1), (), "stop") for n in range(len(scores)))
    prompt = Prompt((Message("user", name),), source, rubric=rubric)
    return Group(prompt, (1,), responses, scores, criteria=criteria)


GROUPS = [
    group("a", "easy.jsonl", (1.0, 3.0)),
    group("b", "easy.jsonl", (4.0, None)),
    group("c", "hard.jsonl", (0.0, 0.0)),
]


def parts_of(groups: Sequence[Group], categories: Mapping[str, str] = MappingProxyType({})) -> PartNames:
    return PartNames.of({group.prompt.id: group.prompt for group in groups}, categories)


def rows_of(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    return [(group.prompt.id, group) for group in groups]


def test_means_by_source_are_over_prompts() -> None:
    first, second, third = (group.prompt.id for group in GROUPS)
    wins = {"start": {first: 1.0, second: 0.5}, "previous": {first: 0.0, third: 1.0}}
    found = parts_of(GROUPS).measured(rows_of(GROUPS), lambda part: reward_measures(part, wins, 100, 0))
    assert [*found] == ["by_source"] and [*found["by_source"]] == ["easy.jsonl", "hard.jsonl"]
    easy, hard = found["by_source"].values()
    assert isinstance(easy, dict) and isinstance(hard, dict)
    assert (easy["prompts"], easy["reward"], easy["win_rate_vs_start"], easy["win_rate_vs_previous"]) == (2, 3, 0.75, 0)
    assert (hard["reward"], hard["win_rate_vs_previous"]) == (0, 1) and "win_rate_vs_start" not in hard
    table = part_table([found])
    assert table.headings == ("prompts", "reward", "wins vs start", "wins vs prev.")
    assert [row[:2] for row in table.rows[0]] == [["easy.jsonl", "2"], ["hard.jsonl", "1"]]
    assert table.rows[0][1][3] == "–"


def test_prompts_of_one_part_are_not_told_apart() -> None:
    assert parts_of(GROUPS[:2]).names == {}
    one, other = (group.prompt.id for group in GROUPS[:2])
    assert parts_of(GROUPS[:2], {one: "cats"}).names == {"by_category": {one: "cats", other: "–"}}


def test_the_largest_parts_are_told() -> None:
    many = [group(str(n), f"{n // 2:02d}.jsonl", ()) for n in range(103)]
    found = parts_of(many).measured(rows_of(many), lambda part: {"rows": len(part)})
    # Fifty files of two prompts; the last has one.
    assert [*found["by_source"]] == [f"{n:02d}.jsonl" for n in range(50)] and len(
        parts_of(many).names["by_source"]
    ) == 100


def test_kl_of_a_part_is_that_of_its_responses() -> None:
    own = [(-1.0,), (-1.0, -2.0), (-3.0,), (-1.0, -1.0), (-2.0,), (-4.0, -1.0)]
    start = [(-2.0,), (-1.0, -4.0), (-3.0,), (-2.0, -1.0), (-2.0,), (-4.0, -2.0)]
    found = kl_by_part(parts_of(GROUPS), GROUPS, own, {"start": start, "previous": own}, 100, 0)["by_source"]
    easy, hard = found["easy.jsonl"], found["hard.jsonl"]
    assert isinstance(easy, dict) and isinstance(hard, dict)
    # (1 + 2 + 0 + 1) nats on six tokens; 1 nat on three.
    assert (easy["kl_to_start"], hard["kl_to_start"]) == (pytest.approx(4 / 6), pytest.approx(1 / 3))
    assert easy["kl_to_previous"] == 0 and hard["kl_to_start_ci"] == [hard["kl_to_start"]] * 2


def test_measures_of_the_same_parts_come_together() -> None:
    one: dict[str, ByPart] = {"by_source": {"a": {"x": 1}, "b": {"x": 2}}}
    other: dict[str, ByPart] = {"by_source": {"b": {"y": 3}, "c": {"y": 4}}, "by_category": {"d": {"y": 5}}}
    whole = {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"y": 4}}
    assert parts_together(one, other) == {"by_source": whole, "by_category": {"d": {"y": 5}}}


def test_means_by_criterion_leave_out_missing_scores() -> None:
    rubric = json.dumps([["is polite", 1.0], ["is short", 2.0]])
    judged = [
        group("a", "", (1.0, 1.0), rubric, ((1.0, None), (3.0, None))),
        group("b", "", (1.0, 1.0), rubric, ((6.0, 2.0), (None, 4.0))),
    ]
    found = by_criterion(judged, 100, 0)
    polite, short = found["is polite"], found["is short"]
    assert isinstance(polite, dict) and isinstance(short, dict)
    assert (polite["prompts"], polite["score"]) == (2, 4.0) and (short["prompts"], short["score"]) == (1, 3.0)
    assert by_criterion(GROUPS, 100, 0) == {}


def test_a_suite_that_surely_fell_breaks_its_rule() -> None:
    settings = Gate.model_validate({"suites": {"ifeval": {"min_change": -0.02}}})
    standing = Standing(round=1, best=0, base=0, prompts=30)
    for change, verdict in ((Interval(-0.2, -0.3, -0.1), "pause"), (Interval(-0.2, -0.3, 0.0), "promote")):
        measures = {"suite_ifeval_change": change}
        judgement = decide(settings, measures, standing)
        assert judgement.verdict == verdict
    told = gate_reasons(decide(settings, {"suite_ifeval_change": Interval(-0.2, -0.3, -0.1)}, standing), settings, {
        "suite_ifeval_change": Interval(-0.2, -0.3, -0.1)
    }, standing)  # fmt: skip
    assert told == ("suite ifeval changed by -20.0% from round 0 (95 % interval -30.0% to -10.0%, limit -2.0%)",)
