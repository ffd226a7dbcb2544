"""Channels of an answer, as in gpt-oss: labellers see the final one, not the analysis before it. Torch-free."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.models.rendering.template import ChatTemplate

_CHANNEL, _MESSAGE, FINAL_CHANNEL = "<|channel|>", "<|message|>", "final"


class Channels:
    """Finds the final channel in sampled ids: ``<|channel|>final<|message|>...``, up to the next special token.

    Attributes:
        written: whether the template writes channels, and the tokenizer has their tokens.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate | None) -> None:
        """``template``: None, or one that writes no channels, for a format without them."""
        named = {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}
        written = template is not None and _CHANNEL in template.source
        self._channel, self._message = (named.get(name) if written else None for name in (_CHANNEL, _MESSAGE))
        self.written = self._channel is not None and self._message is not None
        self._marks = frozenset(named.values())

    def in_them(self, ids: Sequence[int]) -> bool:
        """Whether a response is written in channels."""
        return self.written and self._channel in ids

    def place(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[int, int, str]:
        """Return where the text of the last final channel begins and ends, and the name of the last channel.

        Without a final channel, the place is the end. Only for responses ``in_them``.
        """
        marks = [at for at, number in enumerate(ids) if number in self._marks]
        found, name = (len(ids), len(ids)), ""
        for at, end in zip(marks, [*marks[1:], len(ids)], strict=True):
            if ids[at] == self._channel:
                name = (decode(ids[at + 1 : end]).split() or [""])[0]
                found = (len(ids), len(ids)) if name == FINAL_CHANNEL else found
            elif ids[at] == self._message and name == FINAL_CHANNEL and found[0] == len(ids):
                found = (at + 1, end)
        return *found, name

    def only_final(self, ids: Sequence[int], start: int) -> bool:
        """Whether the answer that begins at ``start`` has no other channel before it."""
        return [*ids[:start]].count(self._channel or -1) == 1
