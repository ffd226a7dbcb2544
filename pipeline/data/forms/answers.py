"""The prompt and the answers of a row, whether its cells hold answers alone or whole conversations. Torch-free."""

from collections.abc import Sequence

from pydantic import JsonValue

from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.turns import Turns, conversation, is_conversation, messages, same_turns
from pipeline.types import Message

# A cell with an answer, and its column.
Given = tuple[JsonValue, str]


def answer(value: JsonValue, column: str) -> Message:
    """Return the assistant's turn: a text, a message, or a list of one message."""
    if isinstance(value, str):
        return Message("assistant", value)
    return _only(messages(value, column), column)


def split_turns(prompt: Turns | None, given: Sequence[Given]) -> tuple[Turns, list[Message]]:
    """Return the prompt and each cell's answer to it.

    Cells that hold whole conversations must agree in all turns but the last. These turns are the prompt; ``prompt``
    may be the whole of it, its end (its last turn, say), or longer than they are.
    """
    heads: list[tuple[Turns, str]] = []
    answers: list[Message] = []
    for value, column in given:
        # Without a prompt, or with one, a text that holds a transcript is a conversation.
        if not is_conversation(value):
            if not isinstance(value, str):
                messages(value, column)
            answers.append(Message("assistant", str(value)))
            continue
        turns = conversation(value, column)
        if not turns or turns[-1].role != "assistant":
            _refuse(turns, prompt, column)
        answers.append(turns[-1])
        if len(turns) > 1:
            heads.append((turns[:-1], column))
    if not heads:
        if prompt is None:
            raise FaultError(f"{given[0][1]}: without a prompt it must be a conversation, not a text or an answer")
        return prompt, answers
    return _whole(prompt, heads), answers


def _whole(prompt: Turns | None, heads: Sequence[tuple[Turns, str]]) -> Turns:
    head, name = heads[0]
    for other, column in heads[1:]:
        if [turn.parts for turn in other] != [turn.parts for turn in head]:
            what = "without a prompt they" if prompt is None else "they"
            raise FaultError(f"{name} and {column}: {what} must be conversations that differ only in the last turn")
    if prompt is None:
        if head[-1].role not in ("user", "tool"):
            raise FaultError(f"{name}: the turn before the last must be the user's, not {head[-1].role!r}")
        return head
    if _ends_with(head, prompt):
        return head
    if _ends_with(prompt, head):
        return prompt
    if head[0].role == "assistant" and head[-1].role in ("user", "tool"):
        # The turns that both answers share, such as a call of a tool and its result.
        return (*prompt, *head)
    roles = ", ".join(message.role for message in head)
    raise FaultError(
        f"{name}: must hold one assistant turn after the prompt, but the turns before its last one ({roles}) are not "
        "the prompt"
    )


def _ends_with(turns: Turns, end: Turns) -> bool:
    """Return whether ``turns`` end with ``end``, ignoring spaces around contents."""
    return len(end) <= len(turns) and same_turns(turns[len(turns) - len(end) :], end)


def _only(turns: Turns, column: str) -> Message:
    if len(turns) != 1 or turns[0].role != "assistant":
        _refuse(turns, (), column)
    return turns[0]


def _refuse(turns: Turns, prompt: Turns | None, column: str) -> None:
    roles = ", ".join(message.role for message in turns)
    if prompt is None:
        last = repr(turns[-1].role) if turns else "nothing"
        raise FaultError(f"{column}: must end with a turn of the assistant, not with {last}")
    raise FaultError(f"{column}: must hold one assistant turn after the prompt, but holds: {roles or 'nothing'}")
