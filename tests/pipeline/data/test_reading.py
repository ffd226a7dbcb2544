"""Readers: rows to prompts, texts and preferences; every fault names file and row."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Columns, Data, FileData, RestaurantData
from pipeline.data.reading import read_preferences, read_prompts, values
from pipeline.data.spool.distinct import DistinctPrompts
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText

TURN = {"role": "user", "content": "Hi"}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> FileData:
    file = folder / name
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileData(path=str(file))


def distinct(data: Data) -> list[Prompt]:
    found = DistinctPrompts()
    for row in values(read_prompts(data)):
        found.add(row.prompt)
    assert len([*found]) == len(found)
    return [*found]


def preferences(data: FileData) -> list[TextPreference]:
    rows = [*read_preferences(data)]
    assert [row.fault for row in rows] == [None] * len(rows)
    return [*values(rows)]


def faults(folder: Path, *rows: Any) -> list[str]:
    return [f"{row.place}: {row.fault}" for row in read_preferences(jsonl(folder, *rows)) if row.value is None]


def fault(folder: Path, *rows: Any) -> str:
    (found,) = faults(folder, *rows)
    return found


def pair(row: dict[str, Any], folder: Path) -> tuple[tuple[Message, ...], str, str]:
    (read,) = preferences(jsonl(folder, row))
    assert isinstance(read, TextPair)
    return read.prompt.messages, read.chosen, read.rejected


def test_rows_with_one_prompt_are_one_prompt_with_several_texts(tmp_path: Path) -> None:
    rows = [{"mr": "m", "ref": "one"}, {"mr": "n", "ref": None}, {"mr": "m", "ref": "two"}]
    data = jsonl(tmp_path, *rows).model_copy(update={"columns": Columns(prompt="mr", response="ref", answer="mr")})
    found = distinct(data)
    assert [(p.messages[0].content, p.reference, p.answer) for p in found] == [("m", "one", "m"), ("n", None, "n")]
    texts = [(row.prompt.messages[0].content, text) for row in values(read_prompts(data)) for text in row.texts]
    assert texts == [("m", "one"), ("m", "two")]


def test_the_first_reference_of_a_prompt_is_kept_with_the_answer_of_its_first_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "answer": 1},
        {"prompt": "q"},
        {"prompt": "p", "response": "a", "answer": 2},
        {"prompt": "p", "response": "b"},
    ]
    first, second = distinct(jsonl(tmp_path, *rows))
    assert (first.reference, first.answer, second.reference) == ("a", "1", None)


def test_restaurants_give_prompts_with_their_mr_as_answer() -> None:
    data = RestaurantData(prompts=20, references=3)
    rows = [*values(read_prompts(data))]
    assert len(rows) == 20 and sum(len(row.texts) for row in rows) == 60
    assert all(
        row.prompt.answer == row.prompt.messages[0].content and row.prompt.reference == row.texts[0] for row in rows
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": [TURN], "chosen": "Yes", "rejected": "No"},
        {"prompt": [TURN], "chosen": [say("Yes")], "rejected": [say("No")]},
        {"prompt": [TURN], "chosen": [TURN, say("Yes")], "rejected": [TURN, say("No")]},
        {"prompt": "Hi", "chosen": [TURN, say("Yes")], "rejected": [say("No")]},
        {"chosen": [TURN, say("Yes")], "rejected": [TURN, say("No")]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Yes", "rejected": "No"},
        {"prompt": "Hi", "chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "No"},
        {"prompt": [{"from": "human", "value": "Hi"}], "chosen": [{"from": "gpt", "value": "Yes"}], "rejected": "No"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "chosen": "Yes", "rejected": "No"},
    ],
)
def test_every_form_of_a_pair_reads_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    assert pair(row, tmp_path) == ((Message("user", "Hi"),), "Yes", "No")


def test_prompts_of_a_pair_file_come_from_its_conversations(tmp_path: Path) -> None:
    data = jsonl(tmp_path, {"chosen": [TURN, say("Yes")], "rejected": [TURN, say("No")]})
    assert [p.messages for p in distinct(data)] == [(Message("user", "Hi"),)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("not json\n", "not JSON"),
        ('{"prompt": "\\ud800 x", "chosen": "c", "rejected": "r"}\n', "column 'prompt' holds a lone surrogate"),
        ({"prompt": [{"role": "user", "content": "\udfff"}], "chosen": "c", "rejected": "r"}, "lone surrogate"),
        (f'{{"prompt": {"[" * 200 + "]" * 200}, "chosen": "c", "rejected": "r"}}\n', "'prompt' holds lists or objects"),
        ({"prompt": "p", "chosen": "c", "\ud800": "r"}, "column '\\ud800' holds a lone surrogate"),
        ("[1]\n", "not an object with named columns but a list"),
        ({"prompt": "p", "chosen": "c"}, "no column 'rejected'; it has 'prompt', 'chosen'"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "rejected: is null"),
        ({"chosen": "c", "rejected": "r"}, "no column 'prompt'"),
        ({"prompt": " ", "chosen": "c", "rejected": "r"}, "prompt: is empty"),
        ({"prompt": 3, "chosen": "c", "rejected": "r"}, "prompt: must be a string or a list of messages, not int 3"),
        ({"prompt": [], "chosen": "c", "rejected": "r"}, "not an empty list"),
        ({"prompt": [{"role": "judge", "content": "x"}], "chosen": "c", "rejected": "r"}, "message 1 has role 'judge'"),
        ({"prompt": [{"role": "user"}], "chosen": "c", "rejected": "r"}, "must have the strings role and content"),
        ({"prompt": [TURN, say("x")], "chosen": "c", "rejected": "r"}, "must end with a user message"),
        ({"prompt": "p", "chosen": [TURN], "rejected": "r"}, "chosen: must hold one assistant turn"),
        ({"chosen": [TURN, say("x")], "rejected": [say("y"), say("x")]}, "differ only in the last turn"),
        ({"prompt": "p", "chosen": {"text": "c"}, "rejected": "r"}, "must have the strings role and content"),
    ],
)
def test_a_malformed_row_is_named_with_its_file(tmp_path: Path, row: Any, said: str) -> None:
    message = fault(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r"}, row)
    assert "rows.jsonl, row 2: " in message and said in message


def test_a_pair_carries_what_its_columns_say(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 2, "rejected_score": "-1.5", "p_right": 0.9}
    more = {"win_probability": 0.75, "win_probability_rejected": 0.5, "chosen_prior": -3.5, "rejected_prior": -4}
    data = jsonl(tmp_path, {**row, **more}).model_copy(update={"columns": Columns(soft_label="p_right")})
    (read,) = preferences(data)
    assert read == TextPair(read.prompt, "c", "r", 2.0, -1.5, 0.9, 0.75, 0.5, -3.5, -4.0)
    (plain,) = preferences(jsonl(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": None}))
    assert plain == TextPair(plain.prompt, "c", "r")


def test_the_columns_tell_the_form_of_the_data(tmp_path: Path) -> None:
    group = {"prompt": "p", "responses": ["a", [TURN | {"content": "p"}, say("b")], "c"], "rewards": [1, 0.5, -2]}
    (read,) = preferences(jsonl(tmp_path, group))
    assert read == TextGroup(Prompt((Message("user", "p"),), source="rows.jsonl"), ("a", "b", "c"), (1.0, 0.5, -2.0))
    marked = [
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "p", "completion": [say("b")], "label": False},
    ]
    found = preferences(jsonl(tmp_path, *marked))
    assert [(row.completion, row.desirable) for row in found if isinstance(row, UnpairedText)] == [
        ("a", True),
        ("b", False),
    ]


def test_csv_holds_numbers_and_truths_as_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,chosen_score,rejected_score\np,c,r,1e1,\n")
    (read,) = preferences(FileData(path=str(tmp_path / "pairs.csv")))
    assert isinstance(read, TextPair) and (read.chosen_score, read.rejected_score) == (10.0, None)
    (tmp_path / "marked.csv").write_text("prompt,completion,label\np,c,True\np,d,false\n")
    found = preferences(FileData(path=str(tmp_path / "marked.csv")))
    assert [row.desirable for row in found if isinstance(row, UnpairedText)] == [True, False]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"soft_label": 1.2}, "soft_label: 1.2; a probability is from 0 to 1"),
        ({"win_probability": -0.1}, "win_probability: -0.1; a probability is from 0 to 1"),
        ({"win_probability_rejected": 0.5}, "win_probability_rejected: 0.5, but no win_probability"),
        ({"chosen_score": "high"}, "chosen_score: must be a finite number, not str 'high'"),
        ({"rejected_score": True}, "rejected_score: must be a finite number, not bool True"),
        ('"rejected_prior": -Infinity', "rejected_prior: must be a finite number, not float -inf"),
        ({"chosen_score": [1]}, "chosen_score: must be a finite number, not a list"),
    ],
)
def test_a_malformed_number_of_a_pair_is_named(tmp_path: Path, cells: Any, said: str) -> None:
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    row = json.dumps(plain)[:-1] + f", {cells}}}\n" if isinstance(cells, str) else {**plain, **cells}
    assert f"rows.jsonl, row 1: {said}" in fault(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"responses": ["a"], "rewards": [1]}, "responses: 1 in the list; at least 2 responses make a comparison"),
        ({"responses": "a, b", "rewards": [1, 2]}, "responses: must be a list of responses, not str"),
        ({"responses": ["a", 3], "rewards": [1, 2]}, "responses, item 2: must be a string or a list of messages"),
        ({"responses": ["a", "b"], "rewards": [1]}, "rewards: 1 for 2 responses; one for each"),
        ({"responses": ["a", "b"], "rewards": [1, None]}, "rewards: 1 of 2 responses have a score"),
        ({"responses": ["a", "b"], "rewards": 2}, "rewards: must be a list of numbers, not int 2"),
        ({"responses": ["a", "b"]}, "no column 'rewards'"),
        (
            {"completion": "a", "label": 2},
            "label: must be true or false, 1 or 0 (labels.good and labels.bad name others), not",
        ),
        ({"completion": "a", "label": "yes"}, "label: must be true or false, 1 or 0 (labels"),
        ({"completion": "a"}, "no column 'label'"),
    ],
)
def test_a_malformed_group_or_mark_is_named(tmp_path: Path, row: Any, said: str) -> None:
    assert f"rows.jsonl, row 1: {said}" in fault(tmp_path, {"prompt": "p", **row})


def test_a_file_of_two_forms_is_refused(tmp_path: Path) -> None:
    message = fault(
        tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "completion": "c", "label": True}
    )
    assert "row 2: a single response (completion, label), but" in message and "row 1 is a pair" in message


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    row = '{"prompt": "\\ud83d\\ude00", "chosen": "c", "rejected": "r"}\n'
    assert [p.messages[0].content for p in distinct(jsonl(tmp_path, row))] == ["\U0001f600"]


def test_the_fault_of_a_lone_surrogate_can_be_printed(tmp_path: Path) -> None:
    assert b"ud800" in fault(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "\ud800"}).encode()
