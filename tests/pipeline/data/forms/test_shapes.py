"""Shapes that public data sets have, each said in settings: what becomes of one row of it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FileData, Votes
from pipeline.config.files import dump_config, load_settings
from pipeline.data.files.records import Record
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.joined import grouped
from pipeline.data.forms.parsing import preference_of, prompt_of
from pipeline.types import Prompt, TextGroup, TextPair, TextPreference, UnpairedText

Row = dict[str, Any]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"what": "x"}}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def read(row: Row, **settings: Any) -> TextPreference:
    return preference_of(Record("r.jsonl", 1, row), FileData(path="r.jsonl", **settings))


def turns(row: TextPreference) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in row.prompt.messages]


HI = [("user", "Hi")]
HH = "\n\nHuman: Hi\n\nAssistant:"
# Name, row, settings; then the prompt, chosen and rejected.
PAIRS: dict[str, tuple[Row, Row]] = {
    "texts": ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, {}),
    "explicit": ({"prompt": [user("Hi")], "chosen": [said("Yes")], "rejected": [said("No")]}, {}),
    "implicit": ({"chosen": [user("Hi"), said("Yes")], "rejected": [user("Hi"), said("No")]}, {}),
    "one object each": ({"prompt": user("Hi"), "chosen": said("Yes"), "rejected": said("No")}, {}),
    "transcripts": ({"chosen": HH + " Yes", "rejected": HH + " No"}, {}),
    "prompt and whole conversations": (
        {"prompt": "Hi", "chosen": [user("Hi"), said("Yes")], "rejected": [user("Hi"), said("No")]},
        {},
    ),
    "binarised": (
        {"prompt": "Hi", "messages": [user("Hi"), said("Yes")], "chosen": [user("Hi"), said("Yes")]}
        | {"rejected": [user("Hi"), said("No")], "score_chosen": 8.5, "score_rejected": 7},
        {"columns": {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}},
    ),
    "signed": (
        {"context": [user("Hi")], "response1": "Yes", "response2": "No", "overall_preference": -3},
        {
            "columns": {"prompt": "context", "chosen": "response1", "rejected": "response2"}
            | {"rewards": "overall_preference"},
            "rewards_are": "signed",
        },
    ),
    "several annotators": (
        {"context": [user("Hi")], "response1": "No", "response2": "Yes"}
        | {"individual_preference": [{"score": 3}, {"score": 3}, {"score": None}]},
        {
            "columns": {"prompt": "context", "chosen": "response1", "rejected": "response2"}
            | {"rewards": "individual_preference.score"},
            "rewards_are": "signed",
        },
    ),
    "preference of 1 to 2": (
        {"instruction": "Hi", "output_1": "No", "output_2": "Yes", "preference": 2.0},
        {
            "columns": {"prompt": "instruction", "chosen": "output_1", "rejected": "output_2", "rewards": "preference"},
            "rewards_are": "signed",
            "signed": {"first": 1, "second": 2},
        },
    ),
    "two criteria": (
        {"prompt": "Hi", "response_0": "No", "response_1": "Yes", "better_response_id": 1, "safer_response_id": 0},
        {
            "columns": {"chosen": "response_0", "rejected": "response_1", "votes": "better_response_id"},
            "votes": {"chosen": 0, "rejected": 1},
        },
    ),
    "scores of posts": (
        {"history": "Hi", "human_ref_A": "Yes", "human_ref_B": "No", "labels": 1, "score_A": 9, "score_B": 2},
        {
            "columns": {"prompt": "history", "chosen": "human_ref_A", "rejected": "human_ref_B", "votes": "labels"}
            | {"chosen_score": "score_A", "rejected_score": "score_B"},
            "votes": {"chosen": 1, "rejected": 0},
        },
    ),
    "an index": (
        {"info": {"post": "Hi"}, "summaries": [{"text": "No"}, {"text": "Yes"}], "choice": 1},
        {
            "columns": {"prompt": "info.post", "chosen": "summaries[0].text", "rejected": "summaries[1].text"}
            | {"votes": "choice"},
            "votes": {"chosen": 0, "rejected": 1},
        },
    ),
    "a winner": (
        {"conversation_a": [user("Hi"), said("No")], "conversation_b": [user("Hi"), said("Yes")], "winner": "model_b"},
        {
            "columns": {"chosen": "conversation_a", "rejected": "conversation_b", "votes": "winner"},
            "votes": {"chosen": "model_a", "rejected": "model_b", "tie": ["tie", "tie (bothbad)"]},
        },
    ),
    "a winner by name": (
        {"prompt": "Hi", "a": "No", "b": "Yes", "model_a": "gpt", "model_b": "Llama", "winner": "llama"},
        {
            "columns": {"chosen": "a", "rejected": "b", "votes": "winner"}
            | {"chosen_name": "model_a", "rejected_name": "model_b"},
            "votes": {"tie": ["tie", "both"]},
        },
    ),
    "spelled lists and a column for each winner": (
        {"prompt": '["Hi"]', "response_a": '["No"]', "response_b": '["Yes"]'}
        | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        {
            "columns": {"chosen": "response_a", "rejected": "response_b", "chosen_votes": "winner_model_a"}
            | {"rejected_votes": "winner_model_b", "tie_votes": "winner_tie"},
            "parse": True,
        },
    ),
    "preferred output": (
        {"input": {"messages": [user("Hi")]}, "preferred_output": [said("Yes")], "non_preferred_output": [said("No")]},
        {"columns": {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}},
    ),
    "alpaca": (
        {"instruction": "Hi", "input": "", "chosen": "Yes", "rejected": "No", "system": "", "history": []},
        {"columns": {"prompt": ["instruction", "input"], "system": "system", "history": "history"}},
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}]}
        | {"chosen": {"from": "gpt", "value": "Yes"}, "rejected": {"from": "gpt", "value": "No"}},
        {"columns": {"prompt": "conversations"}},
    ),
    "messages and a rejected text": (
        {"messages": [user("Hi"), said("Yes")], "rejected_response": "No"},
        {"columns": {"chosen": "messages", "rejected": "rejected_response"}},
    ),
    "question and system": (
        {"system": "", "question": "Hi", "chosen": "Yes", "rejected": "No"},
        {"columns": {"prompt": "question", "system": "system"}},
    ),
    "votes in several columns": (
        {"instruction": "Hi", "input": "", "response1": "No", "response2": "Yes"}
        | {"annotator1": 2, "annotator2": 2, "annotator3": 2},
        {
            "columns": {"prompt": ["instruction", "input"], "chosen": "response1", "rejected": "response2"}
            | {"votes": ["annotator1", "annotator2", "annotator3"]}
        },
    ),
    "label 2 is a tie": (
        {"prompt": "Hi", "response 1": "Yes", "response 2": "No", "label": 0},
        {
            "columns": {"chosen": "response 1", "rejected": "response 2", "votes": "label"},
            "votes": {"chosen": 0, "rejected": 1, "tie": 2},
        },
    ),
    "steps": (
        {"prompt": "Hi", "initial_reason_steps": "So", "full_chosen": "Yes", "full_rejected": "No"},
        {"columns": {"chosen": "full_chosen", "rejected": "full_rejected"}},
    ),
    "values of several people": (
        {"text": "Hi", "a": "Yes", "b": "No", "preference": [{"value": "first", "user_id": 1}]},
        {
            "columns": {"prompt": "text", "chosen": "a", "rejected": "b", "votes": "preference.value"},
            "votes": {"chosen": "first", "rejected": "second", "tie": None},
        },
    ),
    "other names of roles": (
        {"chosen": [{"role": "Human", "content": "Hi"}, {"role": "bot", "content": "Yes"}]}
        | {"rejected": [{"role": "prompter", "content": "Hi"}, {"role": "Model", "content": "No"}]},
        {},
    ),
    "written out by pandas": (
        {"chosen": "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Yes', 'role': 'assistant'}]"}
        | {
            "rejected": "array([{'role': 'user', 'content': 'Hi'},\n"
            " {'role': 'assistant', 'content': 'No'}], dtype=object)"
        },
        {"parse": True},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_every_shape_reads_the_same(name: str) -> None:
    row, settings = PAIRS[name]
    found = read(row, **settings)
    assert isinstance(found, TextPair)
    assert (turns(found), found.chosen, found.rejected, found.soft_label) == (HI, "Yes", "No", 1.0)


# Row, settings, and the responses with their rewards.
GROUPS: dict[str, tuple[Row, Row, dict[str, float | None]]] = {
    "nested scores": (
        {"instruction": "Hi"}
        | {"completions": [{"response": r, "overall_score": s} for r, s in (("a", 7.5), ("b", 6), ("c", "N/A"))]},
        {
            "columns": {"prompt": "instruction", "responses": "completions.response"}
            | {"rewards": "completions.overall_score"}
        },
        {"a": 7.5, "b": 6.0, "c": None},
    ),
    "ranks": (
        {"prompt": HH, "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}]},
        {"columns": {"responses": "answers.answer", "rewards": "answers.rank"}, "rewards_are": "ranks"},
        {"a": -2.0, "b": -1.0},
    ),
    "scores of answers": (
        {"question": "Hi", "answers": [{"text": "a", "pm_score": 3}, {"text": "b", "pm_score": 0}]},
        {"columns": {"prompt": "question", "responses": "answers.text", "rewards": "answers.pm_score"}},
        {"a": 3.0, "b": 0.0},
    ),
    "a column for each": (
        {"question": {"full_text": "Hi"}, "answer_0": "a", "answer_1": "b", "score_0": -0.5, "score_1": 0.5},
        {
            "columns": {"prompt": "question.full_text", "responses": ["answer_0", "answer_1"]}
            | {"rewards": ["score_0", "score_1"]}
        },
        {"a": -0.5, "b": 0.5},
    ),
    "ratings with a null": (
        {"instruction": "Hi", "generations": ["a", "b", "c"], "ratings": [5, None, 1], "model_name": None},
        {"columns": {"prompt": "instruction", "responses": "generations", "rewards": "ratings"}},
        {"a": 5.0, "b": None, "c": 1.0},
    ),
    "choices and labels": (
        {"input": "Hi", "targets": {"choices": ["a", "b"], "labels": [0, 1]}},
        {"columns": {"prompt": "input", "responses": "targets.choices", "rewards": "targets.labels"}},
        {"a": 0.0, "b": 1.0},
    ),
    "the place of the best": (
        {"prompt": "Hi", "options": ["a", "b", "c"], "choice": 2},
        {"columns": {"responses": "options", "best": "choice"}},
        {"a": 0.0, "b": 0.0, "c": 1.0},
    ),
    "several ratings of each": (
        {"prompt": "Hi", "responses": ["a", "b"], "helpful": [4, 2], "correct": [2, None]},
        {"columns": {"rewards": ["helpful", "correct"]}},
        {"a": 3.0, "b": 2.0},
    ),
    "lists written out": (
        {"prompt": "Hi", "responses": "['a', 'b']", "rewards": "[1, 2]"},
        {"parse": True},
        {"a": 1.0, "b": 2.0},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_every_shape_has_its_rewards(name: str) -> None:
    row, settings, rewards = GROUPS[name]
    found = read(row, **settings)
    assert isinstance(found, TextGroup) and turns(found) == HI
    assert dict(zip(found.responses, found.rewards, strict=True)) == rewards


@pytest.mark.parametrize(
    "settings",
    [
        *((settings) for _, settings in PAIRS.values()),
        *((settings) for _, settings, _ in GROUPS.values()),
        {"votes": {"chosen": 1, "rejected": 0}},
        {"votes": {"chosen": [1, "a"], "rejected": ["b", 0]}},
        {"votes": {"chosen": 0, "rejected": 1, "tie": 0}},
    ],
)
def test_settings_of_every_shape_are_read_back_as_they_were(settings: Row, tmp_path: Path) -> None:
    data = FileData(path="r.jsonl", **settings)
    (tmp_path / "c.yaml").write_text(dump_config(data))
    again = load_settings(FileData, [tmp_path / "c.yaml"])
    assert (again, again.votes.meanings) == (data, data.votes.meanings)


def test_the_word_0_is_a_tie_unless_it_is_a_vote() -> None:
    assert Votes().meanings == (("1",), ("2",), ("0",))
    assert Votes(chosen=0, rejected=1).meanings == (("0",), ("1",), ())
    assert Votes(chosen=0, rejected=1, tie=2).meanings == (("0",), ("1",), ("2",))
    with pytest.raises(ValueError, match="must differ, not 0, 1, 1"):
        Votes(chosen=0, rejected=1, tie=1)


@pytest.mark.parametrize("label", [True, 1, "1", 1.0, "True", "good", "Thumbs_Up"])
@pytest.mark.parametrize("whole", [False, True])
def test_marks_of_every_kind_are_good_or_bad(label: Any, whole: bool) -> None:
    settings = {"columns": {"completion": "messages"}, "labels": {"good": ["good", "thumbs_up"], "bad": ["bad"]}}
    row = {"messages": [user("Hi"), said("Yes")]} if whole else {"prompt": "Hi", "messages": "Yes"}
    found = read({**row, "label": label}, **settings)
    assert isinstance(found, UnpairedText)
    assert (turns(found), found.completion, found.desirable) == (HI, "Yes", True)
    for bad in (False, 0, "0", "bad"):
        assert not read({**row, "label": bad}, **settings).desirable  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("number", "strength", "chosen", "label", "scores"),
    [
        (-3, "soft_label", "a", 1.0, (None, None)),
        (-1, "soft_label", "a", 2 / 3, (None, None)),
        (0, "soft_label", "a", 0.5, (None, None)),
        ("2", "soft_label", "b", 5 / 6, (None, None)),
        (-2, "margin", "a", 1.0, (2.0, 0.0)),
        (3, "margin", "b", 1.0, (3.0, 0.0)),
        (0, "margin", "a", 0.5, (0.0, 0.0)),
        (1, "none", "b", 1.0, (None, None)),
    ],
)
def test_a_signed_number_gives_direction_and_strength(
    number: Any, strength: str, chosen: str, label: float, scores: tuple[float | None, float | None]
) -> None:
    settings = {"columns": {"rewards": "s"}, "rewards_are": "signed", "signed": {"strength": strength}}
    found = read({"prompt": "p", "chosen": "a", "rejected": "b", "s": number}, **settings)
    assert isinstance(found, TextPair) and found.chosen == chosen and found.soft_label == pytest.approx(label)
    assert (found.chosen_score, found.rejected_score) == scores
    with pytest.raises(FaultError, match="s: 4; signed numbers go from -3 to 3"):
        read({"prompt": "p", "chosen": "a", "rejected": "b", "s": 4}, **settings)


def test_ranks_of_a_pair_are_scores_the_other_way() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 4}
    found = read(row, rewards_are="ranks")
    assert isinstance(found, TextPair) and (found.chosen_score, found.rejected_score) == (-1.0, -4.0)


def test_consecutive_rows_of_one_response_are_a_group() -> None:
    rows = [("p", "a", 4), ("p", "b", 1), ("p", "c", None), ("q", "d", 2), ("p", "e", 3), ("p", "f", 0)]
    records = [
        Record("r.jsonl", n, {"prompt": p, "response": r, "helpfulness": s, "correctness": s})
        for n, (p, r, s) in enumerate(rows, 1)
    ]
    records.insert(4, Record("r.jsonl", 9, {}, "not JSON"))
    columns = {"responses": "response", "rewards": ["helpfulness", "correctness"]}
    data = FileData(path="r.jsonl", rows="responses", columns=columns)  # type: ignore[arg-type]
    found = [*grouped(records, data)]
    assert [(record.number, record.fault) for record in found] == [(1, None), (4, None), (9, "not JSON"), (5, None)]
    first, last = (preference_of(found[at], data) for at in (0, 3))
    assert isinstance(first, TextGroup) and isinstance(last, TextGroup)
    assert (first.responses, first.rewards) == (("a", "b", "c"), (4.0, 1.0, None))
    assert (last.responses, last.rewards) == (("e", "f"), (3.0, 0.0))
    with pytest.raises(FaultError, match="1 in consecutive rows with this prompt") as caught:
        preference_of(found[1], data)
    assert caught.value.cause == "lone_response"


def joined(*rows: Row, **settings: Any) -> list[tuple[Record, Prompt | None]]:
    """The groups of rows of one response each, with the prompt that readers of prompts find."""
    data = FileData(path="r.jsonl", rows="responses", **{"columns": {"rewards": "score"}, **settings})
    records = [Record("r.jsonl", number, row) for number, row in enumerate(rows, 1)]
    return [(record, None if record.fault else prompt_of(record, data)) for record in grouped(records, data)]


A, B = [user("Hi"), said("Yo"), user("A?")], [user("Hi"), said("Yo"), user("B?")]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"prompt": "p", "tools": [TOOL]}, {"prompt": "p"}),
        ({"prompt": "p", "tools": [TOOL]}, {"prompt": "p", "tools": [{**TOOL, "type": "other"}]}),
        ({"prompt": "p", "answer": "1"}, {"prompt": "p", "answer": "2"}),
        ({"prompt": "p"}, {"prompt": "q"}),
        ({"prompt": A}, {"prompt": B}),
    ],
)
def test_rows_with_another_prompt_tools_or_answer_are_another_group(first: Row, other: Row) -> None:
    rows = [{**row, "responses": text, "score": 1} for row in (first, other) for text in ("a", "b", "c")]
    found = joined(*rows)
    assert [record.number for record, _ in found] == [1, 4]
    assert [record.values["responses"] for record, _ in found] == [["a", "b", "c"]] * 2


def test_cells_that_are_empty_in_several_ways_are_one_group() -> None:
    empty = (None, float("nan"), "")
    rows = [{"prompt": "p", "answer": gone, "tools": gone, "responses": "a", "score": 1} for gone in empty]
    ((record, _),) = joined(*rows)
    assert record.number == 1 and record.fault is None


def test_whole_conversations_without_a_prompt_are_grouped_by_the_turns_that_they_share() -> None:
    rows = [{"responses": [*talk, said(text)], "score": n} for talk in (A, B) for n, text in enumerate("xyz")]
    found = joined(*rows)
    assert [record.number for record, _ in found] == [1, 4]
    data = FileData(path="r.jsonl", rows="responses", columns={"rewards": "score"})  # type: ignore[arg-type]
    for (record, prompt), talk in zip(found, (A, B), strict=True):
        group = preference_of(record, data)
        assert isinstance(group, TextGroup) and group.responses == ("x", "y", "z")
        assert prompt == group.prompt and turns(group) == [(turn["role"], turn["content"]) for turn in talk]
    # A column that repeats the last turn makes no group of two conversations.
    again = joined(*({**row, "prompt": "A?", "responses": [user(str(n // 3)), *row["responses"]]}
                     for n, row in enumerate(rows[:3] * 2)))  # fmt: skip
    assert [record.number for record, _ in again] == [1, 4]


def test_texts_without_a_prompt_are_no_group() -> None:
    found = joined({"responses": "a", "score": 1}, {"responses": "b", "score": 2})
    assert [record.number for record, _ in found] == [1, 2]
    assert all("without a prompt it must be a conversation" in str(record.fault) for record, _ in found)


def test_the_prompt_of_a_group_is_that_of_its_conversations_for_all_readers() -> None:
    talks = [[*A, said("x")], [*A, said("y")]]
    several: Row = {"responses": ["one", "two"], "rewards": ["r1", "r2"]}
    for row, columns in (
        ({"responses": talks, "rewards": [1, 2]}, {}),
        ({"responses": talks, "rewards": [1, 2], "prompt": "A?"}, {}),
        ({"one": talks[0], "two": talks[1], "r1": 1, "r2": 2}, several),
        ({"one": talks[0], "two": talks[1], "r1": 1, "r2": 2, "prompt": "A?"}, several),
    ):
        data = FileData(path="r.jsonl", columns=columns)  # type: ignore[arg-type]
        record = Record("r.jsonl", 1, row)  # type: ignore[arg-type]
        assert prompt_of(record, data) == preference_of(record, data).prompt
        assert [turn.content for turn in prompt_of(record, data).messages] == ["Hi", "Yo", "A?"]
    with pytest.raises(FaultError, match="responses: an empty list, and no prompt"):
        prompt_of(Record("r.jsonl", 1, {"responses": []}), FileData(path="r.jsonl"))


def test_responses_are_no_reference_whatever_their_column_is_called() -> None:
    rows = [{"prompt": "p", "response": text, "score": 1} for text in ("a", "b")]
    ((_, prompt),) = joined(*rows, columns={"responses": "response", "rewards": "score"})
    assert prompt is not None and prompt.messages[0].content == "p" and prompt.reference is None


def test_the_turns_that_both_share_are_the_prompt_whose_last_turn_another_column_repeats() -> None:
    shared = [user("Hello"), said("Hi."), user("Why?")]
    row = {"prompt": " Why? ", "chosen": [*shared, said("a")], "rejected": [*shared, said("b")]}
    found = read(row)
    assert turns(found) == [("user", "Hello"), ("assistant", "Hi."), ("user", "Why?")]
    data = FileData(path="r.jsonl")
    assert prompt_of(Record("r.jsonl", 1, row), data).id == found.prompt.id
    broken = {**row, "rejected": [*shared, user("b")]}
    assert [turn.content for turn in prompt_of(Record("r.jsonl", 1, broken), data).messages] == [" Why? "]
    for other in ({"responses": [row["chosen"], "b"], "rewards": [1, 0]}, {"completion": row["chosen"], "label": 1}):
        one = {"prompt": "Why?", **other}
        whole = prompt_of(Record("r.jsonl", 1, one), data)
        assert whole.id == read(one).prompt.id == found.prompt.id
    with pytest.raises(FaultError, match=r"before its last one \(user, assistant, user\) are not the prompt"):
        read({**row, "prompt": "Who?"})
    with pytest.raises(FaultError, match="must be conversations that differ only in the last turn"):
        read({**row, "rejected": [user("Hello"), said("b")]})


def test_tools_calls_and_results_are_kept() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "find"}}]}
    result = {"role": "tool", "name": "find", "tool_call_id": "1", "content": {"found": 1}}
    row = {"prompt": [user("Hi"), called, result], "tools": [{**TOOL, "strict": None}]}
    row |= {"chosen": [{**said("Yes"), "tool_calls": [CALL]}], "rejected": "No"}
    found = read(row)
    assert isinstance(found, TextPair)
    assert [(turn.role, turn.content, turn.extra) for turn in found.prompt.messages] == [
        (
            "tools",
            '[{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]',
            "",
        ),
        ("user", "Hi", ""),
        ("assistant", "", '{"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {}}}]}'),
        ("tool", '{"found": 1}', '{"name": "find", "tool_call_id": "1"}'),
    ]
    assert found.chosen_extra == (
        '{"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"what": "x"}}}]}'
    )
    assert (found.chosen, found.rejected, found.rejected_extra) == ("Yes", "No", "")
    with pytest.raises(FaultError, match="message 1: a tool call must have a name"):
        read({**row, "chosen": [{**said(""), "tool_calls": [{"function": {}}]}]})
    with pytest.raises(FaultError, match="tools: must be a list of tools, each an object"):
        read({**row, "tools": "[1]"})


HALF = '[{"type": "function", "function": {"name": "\\ud800", "arguments": "{}"}}]'
DEEP = "[" * 600 + "]" * 600


@pytest.mark.parametrize(
    ("cell", "expected"), [(HALF, "holds a lone surrogate"), (DEEP, "nested more than 98 deep"), ("[" * 9999, "JSON")]
)
def test_json_inside_a_text_must_be_sound_wherever_it_is(cell: str, expected: str) -> None:
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    with pytest.raises(FaultError, match=f"tools: .*{expected}"):
        read({**row, "tools": cell})
    with pytest.raises(FaultError, match=f"chosen: message 1: .*{expected}"):
        read({**row, "chosen": [{**said(""), "tool_calls": cell}]})
    arguments = {"name": "f", "arguments": cell}
    with pytest.raises(FaultError, match=f"chosen: message 1: .*{expected}"):
        read({**row, "chosen": [{**said(""), "tool_calls": [arguments]}]})


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "\\ud800"}]',
        "[{'role': 'user', 'content': '\\ud800'}]",
        '[{"role": "user", "content": ' + DEEP + "}]",
    ],
)
def test_what_parse_reads_must_be_sound(text: str) -> None:
    with pytest.raises(FaultError, match=r"cannot be parsed: holds (a lone surrogate|lists or objects nested)"):
        read({"prompt": text, "chosen": "Yes", "rejected": "No"}, parse=True)
    with pytest.raises(FaultError, match=r"cannot be parsed: holds (a lone surrogate|lists or objects nested)"):
        read({"prompt": "p", "responses": [text, "b"], "rewards": "[1, 2]"}, parse=True)


def test_calls_and_results_of_sharegpt_are_turns() -> None:
    talk = [("human", "Hi"), ("function_call", '{"name": "f", "arguments": "{\\"x\\": 1}"}'), ("observation", "3")]
    row = {"conversations": [{"from": who, "value": what} for who, what in talk], "chosen": "Yes", "rejected": "No"}
    found = read(row, columns={"prompt": "conversations"})
    assert [turn.role for turn in found.prompt.messages] == ["user", "assistant", "tool"]
    assert found.prompt.messages[1].extra == (
        '{"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}'
    )


def test_an_empty_system_turn_is_none_and_one_may_begin_the_users_turn() -> None:
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "system": "Be brief."}
    columns = {"system": "system"}
    assert turns(read(row, columns=columns)) == [("system", "Be brief."), ("user", "Hi")]
    assert turns(read(row, columns=columns, system="user")) == [("user", "Be brief.\n\nHi")]
    assert turns(read({**row, "system": float("nan")}, columns=columns)) == HI
    assert turns(read({**row, "prompt": [{"role": "system", "content": " "}, user("Hi")]})) == HI
    talk = [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert turns(read({**row, "prompt": talk}, columns=columns)) == [("system", "Be brief."), ("user", "Hi")]
    with pytest.raises(FaultError, match="system: a system turn, but the prompt has another one"):
        read({**row, "system": "Be long.", "prompt": talk}, columns=columns)


def test_earlier_exchanges_come_before_the_prompt() -> None:
    row = {"prompt": "Hi", "history": [["a", "b"], ["c", "d"]], "chosen": "Yes", "rejected": "No"}
    found = read(row, columns={"history": "history"})
    assert [text for _, text in turns(found)] == ["a", "b", "c", "d", "Hi"]
    with pytest.raises(FaultError, match=r"history, item 1: must be the texts of \[user, assistant\]"):
        read({**row, "history": [["a"]]}, columns={"history": "history"})


EARLIER = [user("a"), said("b"), user("c"), said("d")]
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("history", "prompt", "expected"),
    [
        (EARLIER, "Hi", "abcdHi"),
        (EARLIER, [*EARLIER, user("Hi")], "abcdHi"),
        ([["a", "b"], ["c", " d "]], [*EARLIER, user("Hi")], "abcdHi"),
        (EARLIER, [user("0"), said("1"), *EARLIER, user("Hi")], "01abcdHi"),
        (EARLIER, [user("c"), said("d"), user("Hi")], "abcdHi"),
        ([*EARLIER, user("Hi")], "Hi", "abcdHi"),
        (EARLIER, [SYSTEM, user("Hi")], "sabcdHi"),
        (EARLIER, [SYSTEM, *EARLIER, user("Hi")], "sabcdHi"),
        ([SYSTEM, *EARLIER], "Hi", "sabcdHi"),
        ([SYSTEM, *EARLIER], [SYSTEM, *EARLIER, user("Hi")], "sabcdHi"),
        ("\n\nHuman: a\n\nAssistant: b", "Hi", "abHi"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: Hi\n\nAssistant:", "Hi", "abHi"),
        (float("nan"), "Hi", "Hi"),
        ([], "Hi", "Hi"),
        ([["a", "b"]], [user("a"), said("c"), user("Hi")], "abacHi"),
    ],
)
def test_a_history_comes_first_and_what_the_prompt_repeats_is_there_once(
    history: Any, prompt: Any, expected: str
) -> None:
    row = {"prompt": prompt, "history": history, "chosen": "Yes", "rejected": "No"}
    assert "".join(text.strip() for _, text in turns(read(row, columns={"history": "history"}))) == expected


def test_a_history_and_the_conversations_of_the_responses_are_there_once() -> None:
    row = {"history": EARLIER, "chosen": [*EARLIER, *A, said("Yes")], "rejected": [*EARLIER, *A, said("No")]}
    found = read(row, columns={"history": "history"})
    assert [text for _, text in turns(found)] == ["a", "b", "c", "d", "Hi", "Yo", "A?"]
    with pytest.raises(FaultError, match="history: a system turn, but the prompt has another one"):
        read({"history": [{**SYSTEM, "content": "t"}, *EARLIER], "prompt": [SYSTEM, user("Hi")], "chosen": "Yes",
              "rejected": "No"}, columns={"history": "history"})  # fmt: skip


def test_a_number_that_is_not_there_is_absent() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for gone in (float("nan"), None, "", "nan"):
        found = read({**row, "chosen_score": gone, "soft_label": gone})
        assert isinstance(found, TextPair) and (found.chosen_score, found.soft_label) == (None, 1.0)
    with pytest.raises(FaultError, match="rejected: is null"):
        read({**row, "rejected": float("nan")})


def test_one_column_may_hold_prompt_and_reference() -> None:
    columns = {"prompt": "messages", "response": "messages"}
    data = FileData(path="r", columns=columns)  # type: ignore[arg-type]
    found = prompt_of(Record("r", 1, {"messages": [user("Hi"), said("Yes")]}), data)
    assert ([turn.content for turn in found.messages], found.reference) == (["Hi"], "Yes")


def test_a_text_that_cannot_be_parsed_is_a_fault_that_shows_it() -> None:
    row = {"prompt": "p", "chosen": "[{'role': 'assistant', 'content': open('x')}]", "rejected": "b"}
    with pytest.raises(FaultError, match="cannot be parsed: neither JSON nor Python"):
        read(row, parse=True)
    assert read(row).chosen == row["chosen"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("columns", "other"),
    [
        ({"votes": "v"}, "votes"),
        ({"chosen_votes": "a", "rejected_votes": "b"}, "votes"),
        ({"best": "b"}, "columns.best"),
    ],
)
def test_one_thing_says_which_response_is_better(columns: Row, other: str) -> None:
    with pytest.raises(ValueError, match=f"rewards_are: signed numbers say which .* and so does {other}; not both"):
        FileData(path="r.jsonl", columns=columns, rewards_are="signed")
    FileData(path="r.jsonl", columns=columns)
