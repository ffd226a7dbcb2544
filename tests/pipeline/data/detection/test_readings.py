"""How data is read is found by looking at it; what two readings fit is left to the user."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FileData
from pipeline.data.detection.readings import readings_of_pairs, readings_of_prompts
from pipeline.data.reading import read_preferences, read_prompts, values
from pipeline.types import TextGroup, TextPair, TextPreference
from tests.pipeline.data.detection.public_shapes import HH, SHAPES, Row


def data_of(rows: list[Row], tmp_path: Path, **settings: Any) -> FileData:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileData(path=str(file), **settings)


def summary(row: TextPreference) -> Any:
    asked = row.prompt.messages[-1].content
    match row:
        case TextPair():
            return asked, row.chosen, row.rejected, row.soft_label
        case TextGroup():
            return dict(zip(row.responses, row.rewards, strict=True))
    return asked, row.completion, row.desirable


@pytest.mark.parametrize("name", SHAPES)
def test_a_public_shape_is_read_with_no_setting_or_one(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    assert (
        sum(len(value) if isinstance(value, dict) and key == "columns" else 1 for key, value in shape.setting.items())
        <= 1
    )
    (reading,) = readings_of_pairs(data_of(shape.rows, tmp_path, **shape.setting)).fit
    rows = [*read_preferences(reading.data)]
    assert [row.fault for row in rows] == [None] * len(rows)
    first = next(values(rows))
    assert summary(first) == shape.first
    if shape.setting:
        assert len(readings_of_pairs(data_of(shape.rows, tmp_path)).fit) > 1


@pytest.mark.parametrize(
    ("row", "found", "prompt", "answer"),
    [
        ({"prompt": "Hi"}, {}, "Hi", None),
        ({"question": "Hi", "answer": "4"}, {"columns": {"prompt": "question"}}, "Hi", "4"),
        (
            {"problem": "Hi", "ground_truth": 4},
            {"columns": {"prompt": "problem", "answer": "ground_truth"}},
            "Hi",
            "4",
        ),
        (
            {"instruction": "Hi", "input": "there"},
            {"columns": {"prompt": ["instruction", "input"]}},
            "Hi\n\nthere",
            None,
        ),
        ({"chosen": f"{HH} a", "rejected": f"{HH} b"}, {}, "Why is the sky blue?", None),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
            {"columns": {"prompt": "messages", "response": "messages"}},
            "Hi",
            None,
        ),
        ({"system": "Be brief.", "query": "Hi"}, {"columns": {"prompt": "query", "system": "system"}}, "Hi", None),
    ],
)
def test_prompts_are_found(row: Row, found: Row, prompt: str, answer: str | None, tmp_path: Path) -> None:
    (reading,) = readings_of_prompts(data_of([row] * 3, tmp_path)).fit
    assert reading.found == found
    first = next(values(read_prompts(reading.data))).prompt
    assert (first.messages[-1].content, first.answer) == (prompt, answer)


def test_scores_settle_which_response_a_number_means(tmp_path: Path) -> None:
    rows = SHAPES["shp"].rows
    (reading,) = readings_of_pairs(data_of(rows, tmp_path)).fit
    assert reading.found["votes"] == {"chosen": 1, "rejected": 0, "tie": None}
    turned = [{**row, "labels": 1 - row["labels"]} for row in rows]
    (reading,) = readings_of_pairs(data_of(turned, tmp_path)).fit
    assert reading.found["votes"] == {"chosen": 0, "rejected": 1, "tie": None}
    unscored = [{name: cell for name, cell in row.items() if not name.startswith("score_")} for row in rows]
    assert len(readings_of_pairs(data_of(unscored, tmp_path)).fit) == 2


def test_the_direction_of_an_unknown_signed_number_is_asked(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "preference": number} for number in (-2, 1)]
    assert [one.data.signed.first for one in readings_of_pairs(data_of(rows, tmp_path)).fit] == [-2, 2]
    rows[0]["preference"] = -5
    assert [one.data.signed.first for one in readings_of_pairs(data_of(rows, tmp_path)).fit] == [-5, 5]


def test_what_the_user_sets_is_kept(tmp_path: Path) -> None:
    rows = SHAPES["orca pairs"].rows
    (reading,) = readings_of_pairs(data_of(rows, tmp_path, columns={"chosen": "rejected", "rejected": "chosen"})).fit
    assert reading.found == {"columns": {"prompt": "question"}}
    assert summary(next(values(read_preferences(reading.data))))[1:3] == ("It is paint.", "Light scatters.")


def test_the_nearest_reading_says_why_it_is_none(tmp_path: Path) -> None:
    rows = [{"instruction": "p", "generations": ["a", "b"], "ratings": [5, None]}] * 3
    found = readings_of_pairs(data_of(rows, tmp_path))
    assert not found.fit and found.nearest is not None
    assert found.nearest.found["columns"]["rewards"] == "ratings"
    assert found.nearest.fault == "row 1: ratings: 1 of 2 responses have a score"
    assert readings_of_pairs(data_of([{"a": 1}], tmp_path)).nearest is None


def test_a_list_without_a_response_where_a_generator_failed(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["a", None, "b"], "rewards": [1, None, 0]}
    (group,) = values(read_preferences(data_of([row], tmp_path)))
    assert summary(group) == {"a": 1.0, "b": 0.0}
    (bad,) = read_preferences(data_of([{**row, "rewards": [1, 2, 0]}], tmp_path))
    assert bad.fault is not None and "item 2" in bad.fault


def found_in(rows: list[Row], tmp_path: Path) -> list[Row]:
    return [reading.found for reading in readings_of_pairs(data_of(rows, tmp_path)).fit]


def test_a_column_of_prompts_comes_before_what_two_answers_begin_with(tmp_path: Path) -> None:
    rows = [
        {"question": f"Capital of {n}?", "chosen": f"The capital is {n}.", "rejected": "The capital may be"}
        for n in range(9)
    ]
    (reading,) = readings_of_pairs(data_of(rows, tmp_path)).fit
    assert (reading.found, reading.prompt) == ({"columns": {"prompt": "question"}}, "column")
    voted = [{"question": "Hi?", "answer_a": "Sure! a", "answer_b": "Sure! b", "winner": w} for w in ("a", "b")]
    assert [found["columns"]["prompt"] for found in found_in(voted, tmp_path)] == ["question"]
    for row in rows:
        del row["question"]
    (reading,) = readings_of_pairs(data_of(rows, tmp_path)).fit
    assert (reading.prompt, reading.found) == ("start", {})


def test_a_list_with_a_label_for_each_response_is_no_list_of_votes(tmp_path: Path) -> None:
    rewards = {"columns": {"responses": "responses", "rewards": "labels"}}
    for labels in ([0, 1], [1, 0]):
        assert found_in([{"prompt": "p", "responses": ["a", "b"], "labels": labels}] * 3, tmp_path) == [rewards]
    assert found_in([{"prompt": "p", "response_1": "a", "response_2": "b", "preference": [2, 1]}] * 3, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "numbers", "ranks"),
    [
        ("reranker_scores", [0.9, 0.1], False),
        ("ranks", [1, 2], True),
        ("rank_scores", [1.5, 0.5], False),
        ("model_ranking", [2, 1], True),
    ],
)
def test_only_whole_numbers_called_ranks_are_ranks(
    name: str, numbers: list[float], ranks: bool, tmp_path: Path
) -> None:
    (found,) = found_in([{"prompt": "p", "responses": ["a", "b"], name: numbers}] * 3, tmp_path)
    assert ("rewards_are" in found) == ranks


@pytest.mark.parametrize("name", ["temperatures", "perplexities", "error_rate", "incorrect", "unhelpful", "score_time"])
def test_numbers_that_are_no_scores_are_no_rewards(name: str, tmp_path: Path) -> None:
    assert found_in([{"prompt": "p", "responses": ["a", "b"], name: [0.1, 0.9]}] * 3, tmp_path) == []
    objects = [{"text": "a", name: 1}, {"text": "b", name: 2}]
    assert found_in([{"prompt": "p", "completions": objects}] * 3, tmp_path) == []
    rows = [{"prompt": "p", "response": text, name: 1} for text in ("a", "b", "c")]
    assert found_in(rows, tmp_path) == []


def test_a_mark_comes_before_numbers_of_rows_of_one_response(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": text, "thumbs": mark, "score": 1}
        for text, mark in (("a", "up"), ("b", "down"), ("c", "up"))
    ]
    (found,) = found_in(rows, tmp_path)
    assert found["columns"] == {"completion": "response", "label": "thumbs"}


def test_an_index_that_is_always_one_is_counted_as_the_columns_are(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "choice": 1}] * 3
    assert [found["votes"]["chosen"] for found in found_in(rows, tmp_path)] == [1]
    rows = [{"prompt": "p", "response_0": "a", "response_1": "b", "choice": 1}] * 3
    assert [found["votes"]["rejected"] for found in found_in(rows, tmp_path)] == [1]


def test_the_ends_of_a_signed_scale_are_those_that_occur(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": n} for n in (-1, 1)]
    ends = [one.data.signed.second for one in readings_of_pairs(data_of(rows, tmp_path)).fit]
    assert ends == [3, 1]


def test_scores_in_scientific_notation_are_scores(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2e-05, "score_rejected": -1.5e-07}
    (reading,) = readings_of_pairs(data_of([row] * 3, tmp_path)).fit
    assert reading.data.columns.chosen_score == "score_chosen"


def test_ties_alone_are_what_the_user_says_they_are(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "votes": [1, 2]}
    (reading,) = readings_of_pairs(data_of([row] * 3, tmp_path, columns={"votes": "votes"})).fit
    assert reading.found == {} and reading.data.columns.votes == "votes"
