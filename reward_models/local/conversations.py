"""Whole conversations as the tokens of a reward model, by its own tokenizer and template. Torch-free.

The scorer and the training of reward models read the same tokens. Departs from ``chat``, which makes the policy's
tokens, in that the answer is rendered with the prompt, as reward models are trained, and ends as the template ends it.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.types import Message

Ids = tuple[int, ...]


class Conversations:
    """Messages to ids.

    Attributes:
        truncated: conversations so far that were longer than ``max_tokens`` and lost tokens at the left.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None) -> None:
        """``tokenizer``: of transformers; without a chat template, contents are joined by newlines.

        ``max_tokens``: None: no conversation is cut.
        """
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self.truncated = 0

    def encode(self, asked: Sequence[tuple[Sequence[Message], str]]) -> list[Ids]:
        """Ids of each prompt with its answer, at most the last ``max_tokens`` of them."""
        texts = [self._render([*messages, Message("assistant", answer)]) for messages, answer in asked]
        if not texts:
            return []
        # A template wrote its own special tokens; a second BOS would be one that training never saw.
        plain = not self._tokenizer.chat_template
        rows: list[list[int]] = self._tokenizer(texts, add_special_tokens=plain, verbose=False)["input_ids"]
        limit = self._max_tokens
        if limit is None:
            return [tuple(row) for row in rows]
        self.truncated += sum(len(row) > limit for row in rows)
        return [tuple(row[-limit:]) for row in rows]

    def _render(self, messages: Sequence[Message]) -> str:
        if not self._tokenizer.chat_template:
            return "\n".join(message.content for message in messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False))


def split_shared(rows: Sequence[Ids]) -> tuple[Ids, list[Ids]]:
    """What all of ``rows`` begin with, and how each goes on.

    >>> split_shared([(1, 2, 3), (1, 2, 4, 5)])
    ((1, 2), [(3,), (4, 5)])
    """
    # Rows in between begin as the first and the last in order do.
    first, last = min(rows, default=()), max(rows, default=())
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:alike], [row[alike:] for row in rows]


def without_end(row: Ids, padding: int | None) -> Ids:
    """``row`` up to its last token that is not ``padding``, or its first, which is where models pool."""
    kept = len(row)
    while kept > 1 and row[kept - 1] == padding:
        kept -= 1
    return row[:kept]
