"""Channels of an answer, as in gpt-oss: labellers see the final one, not the analysis before it. Torch-free."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.models.rendering.template import ChatTemplate

_CHANNEL, _MESSAGE, _FINAL = "<|channel|>", "<|message|>", "final"


class Channels:
    """Finds the final channel in sampled ids: ``<|channel|>final<|message|>...``, up to the next special token."""

    def __init__(self, tokenizer: Any, template: ChatTemplate | None) -> None:
        """``template``: None, or one that writes no channels, for a format without them."""
        named = {token.content: int(number) for number, token in tokenizer.added_tokens_decoder.items()}
        written = template is not None and _CHANNEL in template.source
        self._channel, self._message = (named.get(name) if written else None for name in (_CHANNEL, _MESSAGE))
        self._marks = frozenset(named.values())

    def answer(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
        """Return the ids of the last final channel; none if there are only others; all if there are no channels."""
        if self._channel is None or self._message is None or self._channel not in ids:
            return list(ids)
        marks = [at for at, number in enumerate(ids) if number in self._marks]
        found: list[int] = []
        final = False
        for at, end in zip(marks, [*marks[1:], len(ids)], strict=True):
            if ids[at] == self._channel:
                final = decode(ids[at + 1 : end]).split()[:1] == [_FINAL]
                found = [] if final else found
            elif ids[at] == self._message and final:
                found, final = list(ids[at + 1 : end]), False
        return found
