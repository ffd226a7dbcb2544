"""Rows that are parsed once: later passes see what the first one saw."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FileData, RunConfig
from pipeline.config.files import load_config
from pipeline.data.reading import read_preferences, read_prompts, values
from pipeline.data.run_data import open_data
from pipeline.data.spool.kept_rows import RunRows
from pipeline.errors import UserError

ASKED = [{"role": "user", "content": "Hi"}]
TALK = [*ASKED, {"role": "assistant", "content": "Hello"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
ROWS: dict[str, list[Any]] = {
    "pairs": [
        {"prompt": "p é", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": -0.5, "answer": "x"},
        {"prompt": "p", "chosen": "a"},
        "not json",
        {"prompt": "q", "chosen": "a", "rejected": "b", "response": "r"},
        {"prompt": ASKED, "chosen": [*TALK], "rejected": [*ASKED, CALL]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 2]},
        {"chosen": TALK, "rejected": [*ASKED, {"role": "assistant", "content": "No"}]},
        {"chosen": "Tell me more", "rejected": "Tell me less"},
        {"prompt": 3, "chosen": "a", "rejected": "b"},
        {"chosen": "Tell me more of it", "rejected": "Tell me less of it", "origin": "elsewhere"},
    ],
    "groups": [
        {"prompt": "p", "responses": ["a", "b", None], "rewards": [1, 2.5, None]},
        {"responses": [TALK, [*ASKED, CALL]], "rewards": [0, 1]},
        {"responses": [TALK, TALK, None], "rewards": [0, 1, None]},
        {"prompt": "p", "responses": ["a"], "rewards": [1]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 2], "response": "r"},
    ],
    "marked": [
        {"prompt": "p", "completion": "a", "label": True},
        {"completion": TALK, "label": False},
        {"prompt": "p", "completion": "a", "label": "maybe"},
    ],
}


def run_config(folder: Path, rows: list[Any], *settings: str) -> RunConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    (folder / "run.yaml").write_text(
        f"name: t\nmode: offline\npolicy: {{path: none}}\npairs: {{path: {file}}}\nheld_out: {{prompts: 1}}\n"
    )
    return load_config([folder / "run.yaml"], settings)


@pytest.mark.parametrize("form", ROWS)
def test_every_pass_sees_the_rows_and_faults_of_the_first(form: str, tmp_path: Path) -> None:
    config = run_config(tmp_path, ROWS[form], "pairs.columns.source=origin")
    assert isinstance(config.pairs, FileData)
    rows, read = RunRows(config), [*read_preferences(config.pairs)]
    for _ in range(3):
        assert [(source, [*found]) for source, found in rows.all()] == [("pairs", read)]
    # Not compared with the prompts.
    aside = [(row.prompt.origin, row.prompt.guessed) for row in read if row.prompt is not None]
    kept = [row.prompt for row in values(rows.prompts("pairs"))]
    assert [(prompt.origin, prompt.guessed) for prompt in kept] == aside
    assert form != "pairs" or ("elsewhere", True) in aside
    assert [row.number for row in read] == [*range(1, len(read) + 1)]
    assert [*rows.preferences("pairs")] == read


@pytest.mark.parametrize("form", ROWS)
def test_the_prompt_of_a_preference_is_the_one_that_is_read_without_it(form: str, tmp_path: Path) -> None:
    config = run_config(tmp_path, ROWS[form])
    assert isinstance(config.pairs, FileData)
    alone = [*values(read_prompts(config.pairs))]
    assert len(alone) > 1
    assert [row.prompt for row in values(RunRows(config).prompts("pairs"))] == [row.prompt for row in alone]


def test_rows_of_one_response_are_kept_as_the_groups_that_they_are(tmp_path: Path) -> None:
    given = [{"prompt": p, "responses": text, "rewards": n} for n, (p, text) in enumerate(["pa", "pb", "qc", "qd"])]
    config = run_config(tmp_path, given, "pairs.rows=responses")
    assert isinstance(config.pairs, FileData)
    rows = RunRows(config)
    assert [row.prompt.messages[0].content for row in values(rows.prompts("pairs"))] == ["p", "q"]
    assert [*rows.preferences("pairs")] == [*read_preferences(config.pairs)]


def test_a_pass_that_was_given_up_is_taken_up_and_two_go_at_a_time(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(600)]
    counted: list[int] = []
    rows = RunRows(run_config(tmp_path, pairs), lambda: counted.append(1))
    first = rows.preferences("pairs")
    some = [next(first) for _ in range(300)]
    assert len(counted) == 300
    whole = [*rows.preferences("pairs")]
    assert whole[:300] == some and [*first] == whole[300:] and len(whole) == len(counted) == 600


def test_a_file_that_is_damaged_half_way_is_refused_in_every_pass(tmp_path: Path) -> None:
    config = run_config(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    whole = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(whole * 9000)[:-9])
    rows = RunRows(config.model_copy(update={"pairs": FileData(path=str(tmp_path / "rows.jsonl.gz"))}))
    for read in (rows.preferences, rows.prompts) * 2:
        with pytest.raises(UserError, match=r"rows\.jsonl\.gz: cannot be read"):
            [*read("pairs")]


def test_the_data_of_a_run_parses_each_row_once(tmp_path: Path, parsed: Callable[[], dict[str, int]]) -> None:
    pairs = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    found = open_data(run_config(tmp_path, pairs))
    assert (len([*found.prompts()]), len([*found.preferences()]), len([*found.texts()])) == (19, 20, 0)
    assert parsed() == {"preference_of": 20}
