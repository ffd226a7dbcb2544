"""Forms that people write preferences in: votes, ratings, nested columns, several columns, transcripts."""

from typing import Any

import pytest

from pipeline.config import Columns, FileData, Votes
from pipeline.data.files.records import Record
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.parsing import preference_of, prompt_of
from pipeline.data.forms.transcripts import common_start, is_transcript, transcript
from pipeline.types import Message, TextGroup, TextPair, TextPreference

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def read(row: dict[str, Any], settings: Votes | None = None, **columns: Any) -> TextPreference:
    data = FileData(path="r.jsonl", columns=Columns(**columns), votes=settings or Votes())
    return preference_of(Record("r.jsonl", 1, row), data)


def pair(row: dict[str, Any], settings: Votes | None = None, **columns: Any) -> TextPair:
    found = read(row, settings, **columns)
    assert isinstance(found, TextPair)
    return found


@pytest.mark.parametrize(
    ("votes", "chosen", "soft_label", "majority"),
    [
        ([1, 1, 1], "a", 1.0, 1.0),
        ([2, 2, 2], "b", 1.0, 1.0),
        ([1, 1, 2], "a", 2 / 3, 1.0),
        ([1, 2, 2], "b", 2 / 3, 1.0),
        ([0, 0, 2], "b", 4 / 6, 0.5),
        ([1, 0, 2], "a", 0.5, 0.5),
        ([0, 0, 0], "a", 0.5, 0.5),
        (2, "b", 1.0, 1.0),
        ("1", "a", 1.0, 1.0),
    ],
)
def test_votes_become_a_soft_label_of_the_side_with_more(
    votes: Any, chosen: str, soft_label: float, majority: float
) -> None:
    found = pair({**PAIR, "v": votes}, votes="v")
    assert found.chosen == chosen and found.soft_label == pytest.approx(soft_label)
    assert {found.chosen, found.rejected} == {"a", "b"}
    hard = pair({**PAIR, "v": votes}, Votes(label="majority"), votes="v")
    assert hard.soft_label == majority and (majority == 0.5 or hard.chosen == chosen)


def test_counts_of_votes_are_votes() -> None:
    columns = {"chosen_votes": "yes", "rejected_votes": "no", "tie_votes": "same"}
    found = pair({**PAIR, "yes": 1, "no": "4", "same": 1}, **columns)
    assert (found.chosen, found.soft_label) == ("b", pytest.approx(0.75))
    with pytest.raises(FaultError, match="yes and no: no votes"):
        read({**PAIR, "yes": 0, "no": 0, "same": 0}, **columns)
    found = pair({**PAIR, "yes": False, "no": True, "same": False}, **columns)
    assert (found.chosen, found.soft_label) == ("b", 1.0), "a column for each winner"
    with pytest.raises(FaultError, match="yes: must be a finite number, not bool True"):
        read({**PAIR, "yes": True, "no": 4, "same": 1}, **columns)
    with pytest.raises(FaultError, match=r"v: vote 'True'; votes are '1' \(chosen\)"):
        read({**PAIR, "v": True}, votes="v")
    assert pair({**PAIR, "v": [True, "false", True]}, Votes(chosen="true", rejected="false"), votes="v").chosen == "a"
    with pytest.raises(FaultError, match="no: -1 votes"):
        read({**PAIR, "yes": 2, "no": -1, "same": 0}, **columns)


def test_votes_of_other_names_and_what_is_none() -> None:
    letters = Votes(chosen="A", rejected="B", tie="tie")
    assert pair({**PAIR, "v": ["B", "B", "tie"]}, letters, votes="v").chosen == "b"
    with pytest.raises(FaultError, match=r"v: vote 'C'; votes are 'a' \(chosen\), 'b' \(rejected\)"):
        read({**PAIR, "v": ["A", "C"]}, letters, votes="v")
    with pytest.raises(FaultError, match="v: no votes"):
        read({**PAIR, "v": []}, votes="v")
    with pytest.raises(FaultError, match="soft_label: a soft label, but votes decide it"):
        read({**PAIR, "v": 1, "soft_label": 0.5}, votes="v")


def test_sides_that_change_places_take_their_numbers_with_them() -> None:
    numbers = {"chosen_score": 1, "rejected_score": 2, "chosen_prior": -1, "rejected_prior": -2, "win_probability": 0.3}
    found = pair({**PAIR, **numbers, "v": 2}, votes="v")
    assert found == TextPair(found.prompt, "b", "a", 2.0, 1.0, 1.0, 0.7, 0.3, -2.0, -1.0)


def test_rewards_are_numbers_truths_or_ratings_of_several_judges() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "rewards": [True, [1, 2, 4.5], -1]}
    found = read(row)
    assert isinstance(found, TextGroup) and found.rewards == (1.0, 2.5, -1.0)
    with pytest.raises(FaultError, match="rewards, item 2: must be a finite number, not str 'x'"):
        read({**row, "rewards": [1, [2, "x"], 3]})
    with pytest.raises(FaultError, match="rewards, item 1: must be a finite number, not an empty list"):
        read({**row, "rewards": [[], 1, 3]})


def test_columns_reach_into_objects_and_lists_of_them() -> None:
    completions = [{"response": "a", "rating": {"all": 3}}, {"response": "b", "rating": {"all": 5}}]
    row = {"instruction": "p", "completions": completions}
    columns = {"prompt": "instruction", "responses": "completions.response", "rewards": "completions.rating.all"}
    found = read(row, **columns)
    assert isinstance(found, TextGroup) and (found.responses, found.rewards) == (("a", "b"), (3.0, 5.0))
    with pytest.raises(FaultError, match=r"completions\.rating\.all: 1 of 2 responses have a score"):
        read({**row, "completions": [completions[0], {"response": "b"}]}, **columns)
    assert pair({**PAIR, "a.b": "dotted"}, chosen="a.b").chosen == "dotted"


def test_a_prompt_of_several_columns_and_a_system_turn() -> None:
    columns = {"prompt": ("instruction", "input"), "system": "system"}
    whole = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "4"}]
    row = {"instruction": "Add.", "input": "1 2", "system": "Be brief.", "chosen": "3", "rejected": whole}
    found = pair(row, **columns)
    assert found.prompt.messages == (Message("system", "Be brief."), Message("user", "Add.\n\n1 2"))
    assert (found.chosen, found.rejected) == ("3", "4")
    bare = pair({**row, "input": "", "system": None, "rejected": "4"}, **columns)
    assert bare.prompt.messages == (Message("user", "Add."),)
    with pytest.raises(FaultError, match=r"instruction \+ input: is empty"):
        read({**row, "instruction": " ", "input": None}, **columns)
    data = FileData(path="r", columns=Columns(prompt=("instruction", "input"), response="chosen"))
    assert prompt_of(Record("r", 1, row), data).reference == "3"


def test_a_transcript_is_its_turns() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A: b\n\nc\n\nAssistant: So: Human: no"
    assert is_transcript(text) and not is_transcript("Human: Hi")
    assert not is_transcript("Say\n\nHuman: x\n\nAssistant: y")
    turns = (("user", "Hi"), ("assistant", "Yes?"), ("user", "A: b\n\nc"), ("assistant", "So: Human: no"))
    assert transcript(text) == tuple(Message(*turn) for turn in turns)  # type: ignore[arg-type]
    other = text.replace("So: Human: no", "")
    found = pair({"chosen": text, "rejected": other})
    assert [m.content for m in found.prompt.messages] == ["Hi", "Yes?", "A: b\n\nc"]
    assert (found.chosen, found.rejected) == ("So: Human: no", "")
    with pytest.raises(FaultError, match="conversations that differ only in the last turn"):
        read({"chosen": text, "rejected": text.replace("Yes?", "No")})
    with pytest.raises(FaultError, match="chosen: must end with a turn of the assistant"):
        read({"chosen": text + "\n\nHuman: x\n\nHuman: y", "rejected": text + "\n\nHuman: x\n\nHuman: z"})


@pytest.mark.parametrize(
    ("one", "other", "start"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("It is black", "It is blue", "It is"),
        ("It is bl", "It is blue", "It is"),
        ("It is", "It is blue", "It is"),
        ("One", "Two", ""),
        ("a  b", "a  c", "a"),
    ],
)
def test_the_prompt_of_two_texts_ends_between_words(one: str, other: str, start: str) -> None:
    assert common_start(one, other) == start
    if start:
        found = pair({"chosen": one, "rejected": other})
        assert (found.prompt.messages[0].content + found.chosen, found.rejected) == (one, other[len(start) :])
