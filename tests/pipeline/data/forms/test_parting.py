"""Pairs of conversations that part before their last turns."""

from typing import Any

import pytest

from pipeline.config import Columns, FileData, Votes
from pipeline.data.files.records import Record
from pipeline.data.forms.answers import conversations, exchanges
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.parsing import preference_of
from pipeline.types import Message, TextPair

USER = {"role": "user", "content": "u"}
YES, NO = {"role": "assistant", "content": "y"}, {"role": "assistant", "content": "n"}
MORE = {"role": "user", "content": "more"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
}
RESULT = {"role": "tool", "content": "42"}


def pair(row: dict[str, Any], *, several: bool = True, settings: Votes | None = None, **columns: Any) -> TextPair:
    data = FileData(path="r.jsonl", columns=Columns(**columns), votes=settings or Votes())
    found = preference_of(Record("r.jsonl", 1, row), data, several)
    assert isinstance(found, TextPair)
    return found


def turns(found: TextPair) -> tuple[str, str, str]:
    sides = [found.prompt.messages, *conversations(found)]
    prompt, chosen, rejected = (" ".join(f"{m.role[0]}:{m.content}" for m in side) for side in sides)
    return prompt, chosen, rejected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Whole conversations without a prompt: what they share is the prompt.
        (
            {"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO, MORE, NO]},
            ("u:u", "a:y u:more a:y", "a:n u:more a:n"),
        ),
        # Conversations of different lengths.
        ({"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO]}, ("u:u", "a:y u:more a:y", "a:n")),
        # They part at a user's turn: the turn before it, which both have, follows the prompt.
        (
            {"chosen": [USER, YES, MORE, YES], "rejected": [USER, YES, USER, NO]},
            ("u:u", "a:y u:more a:y", "a:y u:u a:n"),
        ),
        # A prompt, and responses of several turns, as tool callers have them.
        ({"prompt": [USER], "chosen": [CALL, RESULT, YES], "rejected": [NO]}, ("u:u", "a: t:42 a:y", "a:n")),
        ({"prompt": [USER], "chosen": [CALL, RESULT, YES], "rejected": "n"}, ("u:u", "a: t:42 a:y", "a:n")),
        # A prompt, and whole conversations that begin with it.
        ({"prompt": "u", "chosen": [USER, YES, MORE, YES], "rejected": [USER, NO]}, ("u:u", "a:y u:more a:y", "a:n")),
        # Transcripts.
        (
            {"chosen": "\n\nHuman: u\n\nAssistant: y\n\nHuman: more\n\nAssistant: y",
             "rejected": "\n\nHuman: u\n\nAssistant: n"},
            ("u:u", "a:y u:more a:y", "a:n"),
        ),
        # The last turn alone: as without the setting.
        ({"chosen": [USER, YES, MORE, YES], "rejected": [USER, YES, MORE, NO]}, ("u:u a:y u:more", "a:y", "a:n")),
    ],
)  # fmt: skip
def test_conversations_part_where_they_differ(row: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert turns(pair(row)) == expected


def test_votes_turn_both_conversations_round() -> None:
    row = {"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO], "v": 2}
    assert turns(pair(row, votes="v")) == ("u:u", "a:n", "a:y u:more a:y")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": [USER, YES], "rejected": [USER, YES, MORE, NO]}, "chosen: no turn of the assistant differs"),
        ({"chosen": [USER, YES, MORE, YES], "rejected": [MORE, NO]}, "chosen and rejected: share no turns"),
        ({"chosen": [USER, YES, MORE], "rejected": [USER, NO]}, "chosen: must end with a turn of the assistant"),
        ({"prompt": "other", "chosen": [USER, YES, MORE, YES], "rejected": [USER, NO]}, "do not begin with the prompt"),
    ],
)
def test_conversations_that_cannot_be_compared_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(FaultError, match=said):
        pair(row)


def test_without_the_setting_they_are_refused_and_it_is_named() -> None:
    for row in (
        {"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO, MORE, NO]},
        {"prompt": [USER], "chosen": [CALL, RESULT, YES], "rejected": [NO, MORE, YES]},
    ):
        with pytest.raises(FaultError, match=r"training\.turns: all_chosen"):
            pair(row, several=False)
        assert pair(row).several_turns
    # Turns that both responses share belong to the prompt either way.
    row = {"prompt": [USER], "chosen": [CALL, RESULT, YES], "rejected": [CALL, RESULT, NO]}
    assert turns(pair(row, several=False)) == turns(pair(row)) == ("u:u a: t:42", "a:y", "a:n")


def test_a_turn_is_compared_with_the_other_sides_turn_of_the_same_number() -> None:
    def side(*texts: str) -> list[Message]:
        return [Message("assistant" if n % 2 == 0 else "user", text) for n, text in enumerate(texts)]

    chosen, rejected = side("a", "x", "b", "x", "c"), side("a", "y", "c")
    assert [turn.content for _, turn in exchanges([], chosen, rejected)] == ["b", "c"]
    assert [turn.content for _, turn in exchanges([], rejected, chosen)] == ["c"]
