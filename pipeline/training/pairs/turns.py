"""Responses of several turns of the assistant, as the rows in which models read them. Torch-free.

The trained tokens of a turn are those of the template's text for the conversation up to the end of that turn, minus its
text up to where the turn begins: what the model is asked for at inference. Where the next turn's prompt goes on from
these tokens, both are in one row. A template that writes an earlier turn otherwise once it is answered (Qwen 3 leaves
out its thought) begins another row, so that each turn has the context in which the model would write it.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pipeline.data.forms.answers import exchanges
from pipeline.types import FinishReason, Message, Response, TurnRow

_Ids = tuple[int, ...]


class TurnTokeniser(Protocol):
    """The part of ``chat.Chat`` that turns need."""

    end_ids: frozenset[int]

    def prompt_ids(self, messages: Sequence[Message]) -> _Ids:
        """Return the ids up to the start of the assistant's turn."""
        ...

    def response_ids(self, messages: Sequence[Message], text: str, finished: bool = True, extra: str = "") -> _Ids:
        """Return the ids of the assistant's turn, with the end token last unless it is cut."""
        ...


def turns_response(
    prompt: Sequence[Message], turns: Sequence[Message], others: Sequence[Message], chat: TurnTokeniser
) -> Response:
    """Return the response of the ``turns`` after ``prompt``, trained where they differ from ``others``.

    Raises:
        RefusedTurnsError: the template refuses the turns.
    """
    asked: list[tuple[_Ids, _Ids]] = []
    texts = []
    for before, turn in exchanges(prompt, turns, others):
        ids = chat.response_ids(before, turn.content, extra=turn.extra)
        asked.append((chat.prompt_ids(before), ids))
        texts.append(turn.shown)
    trained = tuple(token for _, ids in asked for token in ids)
    end: FinishReason = "stop" if trained and trained[-1] in chat.end_ids else "length"
    return Response("\n".join(texts), trained, (), end, rows=tuple(_joined(asked)))


def _joined(asked: Sequence[tuple[_Ids, _Ids]]) -> Iterator[TurnRow]:
    """Yield the rows of prompts and the ids that follow them; a prompt that goes on from a row joins it."""
    row: TurnRow | None = None
    for prompt_ids, ids in asked:
        read = () if row is None else row.prompt_ids + row.ids
        if row is not None and prompt_ids[: len(read)] == read:
            between = prompt_ids[len(read) :]
            flags = (*row.trained, *(False,) * len(between), *(True,) * len(ids))
            row = TurnRow(row.prompt_ids, row.ids + between + ids, flags)
            continue
        if row is not None:
            yield row
        row = TurnRow(prompt_ids, ids, (True,) * len(ids))
    if row is not None:
        yield row
