"""Fields of turns, and what a prompt holds besides them: read as a chat template is to get them, or refused by name."""

import json
from typing import Any

import pytest

from pipeline.config import Columns, FileData
from pipeline.data.files.records import Record
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.parsing import preference_of, prompt_of
from pipeline.types import Message, Prompt, TextPair

Row = dict[str, Any]
ASKED: Row = {"role": "user", "content": "q"}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"what": "x"}}}
CALLED: Row = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Row = {"role": "tool", "name": "find", "tool_call_id": "c1", "content": "found"}
PAIR: Row = {"prompt": [ASKED], "chosen": "a", "rejected": "b"}


def pair(row: Row, **columns: Any) -> TextPair:
    found = preference_of(Record("r.jsonl", 1, row), FileData(path="r.jsonl", columns=Columns(**columns)))
    assert isinstance(found, TextPair)
    return found


def prompt(row: Row, **columns: Any) -> Prompt:
    return prompt_of(Record("r.jsonl", 1, row), FileData(path="r.jsonl", columns=Columns(**columns)))


def turn(said: Row) -> Message:
    return prompt({"prompt": [said, ASKED]}).messages[0]


def test_every_field_of_a_turn_reaches_the_template() -> None:
    said = {
        "role": "user",
        "content": "q",
        "name": "Ada",
        "weight": 0,
        "tags": ["x"],
        "seen": None,
        "note": "",
        "of": [],
    }
    assert turn(said).plain == {"role": "user", "content": "q", "name": "Ada", "weight": 0, "tags": ["x"]}
    result = prompt({"prompt": [ASKED, CALLED, RESULT]}).messages[2]
    assert result.plain == RESULT


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_several_spellings(name: str) -> None:
    said = {"role": "assistant", "content": "a", name: "so"}
    assert pair({**PAIR, "chosen": [said]}).chosen_extra == '{"reasoning_content": "so"}'
    with pytest.raises(FaultError, match=r"message 1: its reasoning must be a string, not int 3"):
        turn({**said, name: 3})
    with pytest.raises(FaultError, match="message 1 has reasoning_content, which only an assistant's turn"):
        turn({**said, "role": "user"})


def test_developers_have_a_role_of_their_own() -> None:
    assert turn({"role": "developer", "content": "be brief"}).role == "developer"
    assert len(prompt({"prompt": [{"role": "developer", "content": " "}, ASKED]}).messages) == 1
    merged = prompt_of(
        Record("r", 1, {"prompt": [{"role": "developer", "content": "be brief"}, ASKED]}),
        FileData(path="r.jsonl", system="user"),
    )
    assert [(m.role, m.content) for m in merged.messages] == [("user", "be brief\n\nq")]


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "image_url"),
        ({"type": "image", "text": None}, "image"),
        ({"image": "x"}, "image"),
        ({"type": "thinking", "thinking": "so"}, "thinking"),
        ({"type": "text", "text": 3}, "text"),
        ("bare", "str 'bare'"),
    ],
)
def test_of_parts_only_text_is_read_and_others_are_named(part: Any, what: str) -> None:
    text = {"type": "text", "text": "q", "image": None}
    assert (
        turn({"role": "user", "content": [text, {"type": "input_text", "text": "r"}, {"text": "s"}]}).content == "qrs"
    )
    with pytest.raises(FaultError, match=f"message 1 has a part of the kind .*{what}.*only text is read"):
        turn({"role": "user", "content": [text, part]})


def test_a_tool_may_return_any_list() -> None:
    found = [{"type": "event", "name": "x"}]
    assert json.loads(prompt({"prompt": [ASKED, CALLED, {**RESULT, "content": found}]}).messages[2].content) == found
    text = [{"type": "text", "text": "found"}]
    assert prompt({"prompt": [ASKED, CALLED, {**RESULT, "content": text}]}).messages[2].content == "found"
    with pytest.raises(FaultError, match="kind 'image'"):
        prompt({"prompt": [ASKED, CALLED, {**RESULT, "content": [{"type": "image", "image": "x"}]}]})


def test_a_prompt_holds_tools_documents_and_variables() -> None:
    row: Row = {
        **PAIR,
        "tools": [{"type": "function"}],
        "documents": [{"title": "t", "text": "d", "url": None}, "e"],
        "chat_template_kwargs": '{"enable_thinking": false}',
    }
    expected = [
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("tools", [{"type": "function"}]),
        ("documents", [{"title": "t", "text": "d"}, {"text": "e"}]),
    ]
    for messages in (pair(row).prompt.messages, prompt(row).messages):
        assert [(m.role, m.value) for m in messages[:3]] == expected and messages[3:] == (Message("user", "q"),)
    empty: Row = {"tools": [], "documents": [], "chat_template_kwargs": {}}
    assert pair({**PAIR, **empty}).prompt.messages == (Message("user", "q"),)
    assert pair(row, documents=None, chat_template_kwargs=None).prompt.messages[0].role == "tools"
    assert [m.role for m in pair(row).prompt.shown] == ["tools", "documents", "user"]
    for wrong, what in (
        ({"documents": [3]}, "documents: must be a list of documents"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: must be an object"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs: tools is no variable to set"),
    ):
        with pytest.raises(FaultError, match=what):
            pair({**PAIR, **wrong})


def test_fields_that_nobody_says_tell_no_two_turns_apart() -> None:
    numbered = [{**ASKED, "id": "1"}, {**ASKED, "id": "2"}]
    one, other = (prompt({"prompt": [said]}) for said in numbered)
    assert one.id == other.id and one.messages[0].shown == "q"
    assert prompt({"prompt": [{**ASKED, "name": "Ada"}]}).id != one.id
    row = {"chosen": [numbered[0], {"role": "assistant", "content": "a"}]}
    row["rejected"] = [numbered[1], {"role": "assistant", "content": "b"}]
    assert pair(row).prompt.messages[0].content == "q"


def test_images_of_a_row_are_a_field_of_the_last_user_s_turn() -> None:
    assert prompt({"prompt": [ASKED], "images": ["x", "y"]}).messages[0].fields == {"images": 2}
    assert prompt({"prompt": [ASKED], "images": []}).messages[0].fields == {}
    assert prompt({"prompt": [ASKED], "image": "a.png"}, source="image").messages[0].fields == {}


def test_turns_that_both_answers_share_after_the_prompt_belong_to_it() -> None:
    answers = ({"role": "assistant", "content": text} for text in "ab")
    chosen, rejected = ([CALLED, RESULT, answer] for answer in answers)
    found = pair({"prompt": [ASKED], "chosen": chosen, "rejected": rejected})
    assert [m.role for m in found.prompt.messages] == ["user", "assistant", "tool"]
    assert (found.chosen, found.rejected) == ("a", "b")
    with pytest.raises(FaultError, match="differ only in the last turn"):
        pair({"prompt": [ASKED], "chosen": chosen, "rejected": [CALLED, {**RESULT, "content": "other"}, rejected[-1]]})


def test_a_prompt_that_ends_with_the_assistant_is_refused() -> None:
    begun = {"role": "assistant", "content": "The answer"}
    with pytest.raises(FaultError, match="prompt: must end with a user message, not with 'assistant'"):
        prompt({"prompt": [ASKED, begun]})
