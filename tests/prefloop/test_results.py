"""Runs read from Python: what the tables say is what the run folder holds."""

import re
from pathlib import Path

import pytest

from flows.report.terminal import read_rounds
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from prefloop import Run, UserError, load_run
from prefloop.tables import metric_table, preference_table
from tests.support.finished_run import finished
from tests.support.places import ROOT
from tests.support.tiny_run import begin, make_job, open_context


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def mine(job: Path) -> Run:
    (job / "runs").mkdir()
    finished(job, job / "runs" / "mine", "rounds=1")
    return load_run(job / "runs" / "mine")


def test_metrics_are_those_of_the_rounds(mine: Run) -> None:
    told = read_rounds(mine.folder)
    table = mine.metrics
    assert table["round"].to_pylist() == [0, 1] == [facts.round for facts in mine.rounds]
    assert table["reward"].to_pylist() == [metrics["reward"] for metrics in told]
    assert table["win_rate_vs_start_ci"].to_pylist()[1] == told[1]["win_rate_vs_start_ci"]
    assert mine.rounds[1].reward == told[1]["reward"]
    assert len(mine.metrics.to_pandas()) == 2


def test_samples_are_rows_of_one_response_with_its_score(mine: Run) -> None:
    groups = [*read_groups(RunFolder(mine.folder).stage(1, "labels").folder)]
    rows = mine.samples(1).to_pylist()
    assert len(rows) == sum(len(group.responses) for group in groups) == 24
    first = groups[0].responses[1]
    assert rows[1] == {
        "prompt_id": groups[0].prompt.id,
        "prompt": groups[0].prompt.messages[-1].content,
        "messages": [{"role": "user", "content": groups[0].prompt.messages[-1].content}],
        "answer": "barn",
        "number": 1,
        "response": first.text,
        "score": groups[0].scores[1],
        "tokens": len(first.token_ids),
        "logprob": -float(len(first.token_ids)),
        "finish_reason": "stop",
    }
    assert {row["score"] for row in rows} == {0.0, 1.0}
    assert mine.samples(0, held_out="greedy").num_rows == 4


def test_pairs_are_those_that_were_trained_on(mine: Run) -> None:
    pairs = [*read_preference_rows(RunFolder(mine.folder).stage(1, "pairs").folder)]
    rows = mine.pairs(1).to_pylist()
    assert [row["chosen"] for row in rows] == [pair.chosen.text for pair in pairs]  # type: ignore[union-attr]
    assert {(row["chosen_score"], row["rejected_score"], row["round"]) for row in rows} == {(1.0, 0.0, 1)}


def test_groups_and_marked_responses_have_tables_of_their_own(job: Path, tmp_path: Path) -> None:
    for form, columns in (("groups", ["responses", "rewards"]), ("marked", ["completion", "label"])):
        loss = "rpo_sqloo" if form == "groups" else "kto"
        settings = (f"pairs.path={job / form}.jsonl", f"loss.preset={loss}", "rounds=1")
        context = open_context(job, tmp_path / form, "offline", *settings)
        begin(context)
        run_stage(context, 1, "pairs")
        write_text(context.run.config_file, dump_config(context.config))
        table = load_run(tmp_path / form).pairs(1)
        assert table.column_names[-2:] == columns
        rows = table.to_pylist()
        if form == "marked":
            assert {row["label"] for row in rows} == {True, False}
            assert all(("barn" in row["completion"]) == row["label"] for row in rows)
        else:
            assert all(row["rewards"][1] == 1.5 and "barn" in row["responses"][1] for row in rows)
    assert preference_table([]).num_rows == 0


def test_what_is_not_there_is_told_with_what_is(mine: Run, tmp_path: Path) -> None:
    for ask, told in (
        (lambda: mine.pairs(2), "round 2 has no pairs; rounds that have them: 1"),
        (lambda: mine.samples(0), "round 0 has no samples; rounds that have them: 1"),
        (lambda: mine.policy_folder(7), "round 7 has no policy; rounds that have them: 0, 1"),
        (lambda: load_run(tmp_path), "not a run folder"),
        (lambda: mine.report, "no report yet"),
    ):
        with pytest.raises(UserError, match=told):
            ask()


def test_the_policy_is_a_model_folder(mine: Run, job: Path) -> None:
    assert mine.policy_folder(0) == job / "model"
    assert (mine.policy_folder() / "model.safetensors").is_file()
    assert mine.policy_folder() == mine.folder / "round_001" / "policy"


def test_nested_and_odd_metrics_find_a_column() -> None:
    table = metric_table([{"round": 0, "a": {"b": 1}}, {"round": 1, "a": {"b": 0.5, "c": "x"}, "d": [1, 2.5], "e": 1}])
    assert table.to_pylist()[1] == {"round": 1, "a.b": 0.5, "a.c": "x", "d": [1.0, 2.5], "e": 1}
    assert metric_table([{"e": 1}, {"e": "x"}])["e"].to_pylist() == ["1", "x"]


def test_the_page_s_example_runs(mine: Run, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job)
    (mine.folder / "report.html").touch()
    _, code = re.findall(r"^```python\n(.*?)^```", (ROOT / "prefloop" / "README.md").read_text(), re.M | re.S)
    exec(compile(code, "README.md", "exec"), {})
    (mine.folder / "report.html").unlink()
