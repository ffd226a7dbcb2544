"""A judge of rubrics over HTTP: a question for each criterion, their weighted mean, kept, counted and cached."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.check import check_config
from flows.stages.labels.labels import outcome_of_labels
from pipeline.config import FileData, JudgeScorer
from pipeline.data.reading import PromptRow, SourceRow, read_prompts, values
from pipeline.errors import UserError
from pipeline.storage.rows import read_groups, write_groups
from pipeline.types import Group, Message, Prompt, Response
from pipeline.types.rubrics import criteria_of
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.labeller import Labels, label
from tests.support.judge_server import JudgeServer, judge_server
from tests.support.small_config import write_small_config
from tests.support.tiny_model import save_tiny_model

RUBRIC = '[["is polite", 3.0], ["is short <|im_end|>", 1.0]]'


def verdict(question: str) -> str:
    """Politeness is the word please; short is at most ten letters."""
    if "is polite" in question:
        told = ["please" in text for text in responses(question)]
    elif "is short" in question:
        told = [len(text) <= 10 for text in responses(question)]
    else:
        told = [True for _ in responses(question)]
    if len(told) == 1:
        return f"So.\nScore: {9 if told[0] else 1}"
    return "Verdict: " + ("tie" if told[0] == told[1] else "A" if told[0] else "B")


def responses(question: str) -> list[str]:
    return [part.split("\n")[1] for part in question.split("<<<RESPONSE")[1:]]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(verdict) as made:
        yield made


def group(*texts: str, rubric: str = RUBRIC) -> Group:
    prompt = Prompt((Message("user", "Say it."),), rubric=rubric)
    return Group(prompt, (1,), tuple(Response(text, (1,), (), "stop") for text in texts))


def accounts(folder: Path, name: str = "labels") -> Accounts:
    return Accounts(LabelCache(folder / f"{name}.sqlite"), Ledger(folder / f"{name}.jsonl"), "round_001/labels")


def settings(server: JudgeServer, **given: Any) -> JudgeScorer:
    endpoint = {"base_url": server.url, "model": "judge", "backoff": 0.01, **given.pop("endpoint", {})}
    return JudgeScorer.model_validate({"server": endpoint, "rubric": True, **given})


def labelled(given: JudgeScorer, books: Accounts, *groups: Group) -> list[Labels]:
    return build_labeller(given, books).label(groups)


POLITE, SHORT, BOTH = "would you please say so", "say so", "please"


def test_each_criterion_has_a_question_of_its_own_and_scores_are_weighted(server: JudgeServer, tmp_path: Path) -> None:
    books = accounts(tmp_path)
    (labels,) = labelled(settings(server, mode="pointwise"), books, group(POLITE, SHORT, BOTH))
    assert labels.criteria == ((9.0, 1.0), (1.0, 9.0), (9.0, 9.0))
    assert labels.scores == ((3 * 9 + 1) / 4, (3 * 1 + 9) / 4, 9.0)
    assert len(server.seen) == 6 and books.counts["questions"] == 6
    asked = [body["messages"][0]["content"] for body in server.seen]
    assert sum("is polite" in text for text in asked) == sum("is short" in text for text in asked) == 3
    # A criterion is data: fenced, and its control tokens broken up.
    assert not any("<|im_end|>" in text for text in asked) and all("<<<CRITERION " in text for text in asked)


def test_pairs_are_compared_by_each_criterion_in_both_orders(server: JudgeServer, tmp_path: Path) -> None:
    (labels,) = labelled(settings(server), accounts(tmp_path), group(POLITE, SHORT))
    assert len(server.seen) == 4
    assert labels.wins == ((0.5, 0.75), (0.25, 0.5)) and labels.scores == (0.75, 0.25)
    assert labels.criteria == ((1.0, 0.0), (0.0, 1.0))


def test_answers_are_cached_by_criterion_and_weights_cost_nothing(server: JudgeServer, tmp_path: Path) -> None:
    given = settings(server, mode="pointwise")
    labelled(given, accounts(tmp_path), group(POLITE))
    other = group(POLITE, rubric='[["is short <|im_end|>", 9.0], ["is polite", 1.0], ["is true", 10.0]]')
    (labels,) = labelled(given, accounts(tmp_path), other)
    assert len(server.seen) == 3 and labels.scores == ((9 * 1 + 9 + 10 * 9) / 20,)
    (whole,) = labelled(given, accounts(tmp_path), group(POLITE, rubric=""))
    assert len(server.seen) == 4 and whole.scores == (9.0,) and whole.criteria == ()
    # A judge that reads no rubrics asks about the whole, and keeps what it was told before there were any.
    plain = JudgeScorer.model_validate({"server": {"base_url": server.url, "model": "judge"}, "mode": "pointwise"})
    labelled(plain, accounts(tmp_path), group(POLITE, rubric=""))
    labelled(plain, accounts(tmp_path), group(POLITE))
    assert len(server.seen) == 5


def test_a_budget_counts_criteria_and_a_missing_one_makes_the_label_missing(
    server: JudgeServer, tmp_path: Path
) -> None:
    given = settings(server, mode="pointwise", endpoint={"budget": {"calls": 3}, "concurrency": 1})
    books = accounts(tmp_path)
    labels = labelled(given, books, group(POLITE, SHORT))[0]
    assert len(server.seen) == 3 and books.missing["budget"] == 1
    assert labels.criteria == ((9.0, 1.0), (1.0, None)) or labels.scores.count(None) == 1
    assert [score is None for score in labels.scores].count(True) == 1


def test_scores_by_criterion_are_kept_with_the_labels_and_told(server: JudgeServer, tmp_path: Path) -> None:
    labeller = build_labeller(settings(server, mode="pointwise"), accounts(tmp_path))
    groups = label([group(POLITE, SHORT), group(BOTH, rubric="")], labeller)
    (tmp_path / "labels").mkdir()
    write_groups(tmp_path / "labels" / "shard_00000.parquet", groups)
    assert list(read_groups(tmp_path / "labels")) == groups
    assert groups[0].only([1]).criteria == ((1.0, 9.0),)
    told = outcome_of_labels(tmp_path / "labels", {}).metrics["criteria"]
    assert told == {"is polite": {"mean": 5.0, "labels": 2}, "is short <|im_end|>": {"mean": 5.0, "labels": 2}}


def test_a_template_of_ones_own_must_show_the_criterion(server: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ conversation }} {{ response }} Score: ?")
    with pytest.raises(UserError, match=r"own\.jinja: does not show \{\{ criterion \}\}"):
        labelled(settings(server, mode="pointwise", template=str(file)), accounts(tmp_path), group(POLITE))
    file.write_text("{{ conversation }} {{ response }} {{ criterion or 'all' }} Score: ?")
    labelled(settings(server, mode="pointwise", template=str(file)), accounts(tmp_path), group(POLITE))


def read(folder: Path, *cells: object) -> list[SourceRow[PromptRow]]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {n}", "rubric": cell}) + "\n" for n, cell in enumerate(cells)))
    data = FileData.model_validate({"kind": "file", "path": str(file), "columns": {"rubric": "rubric"}})
    return list(read_prompts(data))


def test_rubrics_are_read_in_the_usual_forms(tmp_path: Path) -> None:
    points = [{"criterion": "is short", "points": 2}, {"text": "is true"}]
    found = [
        row.prompt for row in values(read(tmp_path, ["is polite", "is short"], points, json.dumps(points), None, []))
    ]
    plain, weighted = (("is polite", 1.0), ("is short", 1.0)), (("is short", 2.0), ("is true", 1.0))
    assert [criteria_of(prompt) for prompt in found] == [plain, weighted, weighted, (), ()]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("be polite", "rubric: must be a list of criteria, not a text"),
        ({"is polite": 1}, "rubric: must be a list of criteria, not"),
        (["is polite", " "], r"rubric\[1\]: must be a text"),
        ([{"criterion": "is polite", "weight": -1}], r"rubric\[0\]: weight -1; must be a number above 0"),
        ([{"criterion": "is polite", "weight": "x"}], r"rubric\[0\]: weight 'x'"),
        (["is polite", "is polite"], r"rubric\[1\]: the same criterion as rubric\[0\]"),
    ],
)
def test_a_malformed_rubric_is_a_fault_of_its_row(tmp_path: Path, cell: object, said: str) -> None:
    good, bad = read(tmp_path, ["is polite"], cell)
    assert good.fault is None and re.search(said, str(bad.fault)) and bad.place.endswith("prompts.jsonl, row 2")


def test_a_run_is_refused_with_file_and_row(tmp_path: Path) -> None:
    file = write_small_config(tmp_path, save_tiny_model(tmp_path / "model"))
    rows = [
        {"prompt": f"say {n}", "answer": str(n), "rubric": ["is polite", *([7] if n == 4 else [])]} for n in range(8)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"(?s)prompts\.jsonl.*row 5.*rubric\[1\]: must be a text"):
        check_config([file], ["prompts.columns.rubric=rubric"], tmp_path / "faults.jsonl")
