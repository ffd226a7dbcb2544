"""The prompt and the answers of a row, whether its cells hold answers alone or whole conversations. Torch-free."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import JsonValue

from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.transcripts import common_start
from pipeline.data.forms.turns import Turns, conversation, is_conversation, messages, same_turns
from pipeline.types import Message, Prompt, TextPair

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
    may be the whole of it, its end (its last turn, say), its start, or longer than they are.
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
            refuse_end(turns, prompt, column)
        answers.append(turns[-1])
        if len(turns) > 1:
            heads.append((turns[:-1], column))
    if not heads:
        if prompt is None:
            raise FaultError(f"{given[0][1]}: without a prompt it must be a conversation, not a text or an answer")
        return prompt, answers
    return _whole(prompt, heads, len(given)), answers


def split_texts(given: Sequence[Given], columns: Sequence[str]) -> tuple[Turns, list[Turns]]:
    """Return the common start of two texts as the prompt, and the rest of each; ``columns``: a prompt's names."""
    (chosen, one), (rejected, other) = given
    start = common_start(str(chosen), str(rejected))
    if not start.strip():
        raise FaultError(
            f"no column {' or '.join(map(repr, columns))}, and {one} and {other} share no start that could be the "
            "prompt"
        )
    sides = [str(side)[len(start) :] for side in (chosen, rejected)]
    return (Message("user", start),), [(Message("assistant", side),) for side in sides]


def _whole(prompt: Turns | None, heads: Sequence[tuple[Turns, str]], cells: int) -> Turns:
    head, name = heads[0]
    for other, column in heads[1:]:
        if [turn.parts for turn in other] != [turn.parts for turn in head]:
            what = "without a prompt they" if prompt is None else "they"
            raise FaultError(
                f"{name} and {column}: {what} must be conversations that differ only in the last turn"
                " (training.turns: all_chosen of a policy reads others, too)"
            )
    if prompt is None:
        if head[-1].role not in ("user", "tool"):
            raise FaultError(f"{name}: the turn before the last must be the user's, not {head[-1].role!r}")
        return head
    if ends_with(head, prompt):
        return head
    if ends_with(prompt, head):
        return prompt
    if head[0].role == "assistant" and head[-1].role in ("user", "tool") and len(heads) == cells:
        # The turns that all answers share, such as a call of a tool and its result.
        return (*prompt, *head)
    roles = ", ".join(message.role for message in head)
    raise FaultError(
        f"{name}: must hold one assistant turn after the prompt, but the turns before its last one ({roles}) are not "
        "the prompt"
    )


def ends_with(turns: Turns, end: Turns) -> bool:
    """Return whether ``turns`` end with ``end``, ignoring spaces around contents."""
    return len(end) <= len(turns) and same_turns(turns[len(turns) - len(end) :], end)


def _only(turns: Turns, column: str) -> Message:
    if len(turns) != 1 or turns[0].role != "assistant":
        refuse_end(turns, (), column)
    return turns[0]


def refuse_end(turns: Turns, prompt: Turns | None, column: str) -> None:
    """Raise ``FaultError`` for turns that do not end with an answer to ``prompt``."""
    roles = ", ".join(message.role for message in turns)
    if prompt is None:
        last = repr(turns[-1].role) if turns else "nothing"
        raise FaultError(f"{column}: must end with a turn of the assistant, not with {last}")
    raise FaultError(f"{column}: must hold one assistant turn after the prompt, but holds: {roles or 'nothing'}")


def turns_text(turns: Sequence[Message]) -> str:
    """Return turns as one text, for a column of a table; empty without any."""
    return json.dumps([turn.whole for turn in turns], ensure_ascii=False) if turns else ""


def conversations(pair: TextPair) -> tuple[Turns, Turns]:
    """Return all turns of chosen and rejected after the prompt; each ends with the answer."""
    earlier = (json.loads(text) if text else [] for text in (pair.chosen_turns, pair.rejected_turns))
    chosen, rejected = (
        (*(Message(*whole) for whole in turns), said) for turns, said in zip(earlier, pair.answers, strict=True)
    )
    return chosen, rejected


def trained_turns(pair: TextPair) -> Iterator[tuple[Prompt, str, Message]]:
    """Yield each turn of a pair of several turns that is trained on: what it answers, its name, and itself."""
    ours, theirs = conversations(pair)
    for name, both in (("chosen", (ours, theirs)), ("rejected", (theirs, ours))):
        for number, (before, turn) in enumerate(exchanges(pair.prompt.messages, *both), 1):
            yield replace(pair.prompt, messages=tuple(before)), f"{name}, turn {number}", turn


def exchanges(
    prompt: Sequence[Message], turns: Sequence[Message], others: Sequence[Message]
) -> Iterator[tuple[list[Message], Message]]:
    """Yield each turn of the assistant in ``turns`` that differs from the other side's, after all turns before it.

    The n-th turn of the assistant is compared with the other side's n-th.
    """
    theirs = [turn for turn in others if turn.role == "assistant"]
    number = 0
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            if number >= len(theirs) or turn != theirs[number]:
                yield [*prompt, *turns[:place]], turn
            number += 1


def split_pair(prompt: Turns | None, given: Sequence[Given], several_turns: bool) -> tuple[Turns, list[Turns]]:
    """Return the prompt and each cell's turns after it: one each, unless ``several_turns`` and they part before."""
    try:
        turns, said = split_turns(prompt, given)
    except FaultError:
        if not several_turns or not any(is_conversation(value) for value, _ in given):
            raise
        return _split_parting(prompt, given)
    return turns, [(turn,) for turn in said]


def _split_parting(prompt: Turns | None, given: Sequence[Given]) -> tuple[Turns, list[Turns]]:
    """Return the prompt and each cell's turns after it, for two conversations that may part before their last turns.

    The prompt is what they share, up to a turn of the assistant; ``prompt`` is the start of them, or they follow it.
    """
    wholes = [(_after(prompt, value, column), column) for value, column in given]
    one, other = (turns for turns, _ in wholes)
    name, column = (at for _, at in wholes)
    shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    while shared and not all(_answers_at(turns, shared) for turns in (one, other)):
        shared -= 1
    if not shared:
        raise FaultError(f"{name} and {column}: share no turns before one of the assistant, so there is no prompt")
    sides = [turns[shared:] for turns, _ in wholes]
    for own, theirs, of in ((sides[0], sides[1], name), (sides[1], sides[0], column)):
        said, others = ([turn for turn in turns if turn.role == "assistant"] for turns in (own, theirs))
        if said == others[: len(said)]:
            raise FaultError(f"{of}: no turn of the assistant differs from the other side's")
    return one[:shared], sides


def _answers_at(turns: Turns, place: int) -> bool:
    """Return whether the assistant's turn at ``place`` answers another's."""
    return place < len(turns) and turns[place].role == "assistant" and turns[place - 1].role != "assistant"


def _after(prompt: Turns | None, value: JsonValue, column: str) -> Turns:
    """Return the whole conversation of a cell: its turns, after ``prompt`` if they do not begin with it."""
    turns = conversation(value, column) if is_conversation(value) else (answer(value, column),)
    if not turns or turns[-1].role != "assistant":
        refuse_end(turns, None, column)
    if prompt is None:
        return turns
    if turns[0].role == "assistant":
        return (*prompt, *turns)
    starts = (place for place, turn in enumerate(turns) if turn.role == "assistant")
    start = next((n for n in starts if ends_with(turns[:n], prompt) or ends_with(prompt, turns[:n])), None)
    if start is None:
        roles = ", ".join(turn.role for turn in turns)
        raise FaultError(f"{column}: its turns ({roles}) do not begin with the prompt")
    return (*(turns[:start] if ends_with(turns[:start], prompt) else prompt), *turns[start:])
