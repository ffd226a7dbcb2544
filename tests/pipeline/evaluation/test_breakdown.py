"""Held-out measures by source and criterion, and a gate's rule on a suite."""

import json

from flows.report.findings.gate_reasons import gate_reasons
from flows.report.findings.parts import part_rows
from pipeline.config import Gate
from pipeline.evaluation.breakdown import by_criterion, by_source
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


def test_means_by_source_are_over_prompts() -> None:
    wins = {GROUPS[0].prompt.id: 1.0, GROUPS[1].prompt.id: 0.5}
    found = by_source(GROUPS, wins, 100, 0)
    assert list(found) == ["easy.jsonl", "hard.jsonl"]
    easy, hard = found["easy.jsonl"], found["hard.jsonl"]
    assert isinstance(easy, dict) and isinstance(hard, dict)
    assert (easy["prompts"], easy["reward"], easy["win_rate_vs_start"], easy["response_length"]) == (2, 3.0, 0.75, 1.5)
    assert hard["reward"] == 0.0 and "win_rate_vs_start" not in hard
    assert by_source(GROUPS[:2], wins, 100, 0) == {}
    rows = list(part_rows({"by_source": found}))
    assert [row[0] for row in rows] == ["easy.jsonl", "hard.jsonl"] and rows[0][1] == "2"


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
