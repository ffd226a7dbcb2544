"""Held-out prompts, chosen by content: neither row numbers nor the order of rows matter. Torch-free."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Protocol

from pipeline.config import HeldOut
from pipeline.errors import UserError
from pipeline.types import Prompt, content_hash

# Invisible characters that Unicode does not count as formats (Cf): fillers, joiners, variation selectors.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))
# Tags of mappings (Unicode Standard Annex 44) between styles of one character. Not <super>, <sub>, <fraction>, <circle>
# and the like, which change what a formula means.
_STYLES = frozenset(("<wide>", "<narrow>", "<small>", "<font>", "<noBreak>", "<vertical>")) | frozenset(
    ("<initial>", "<medial>", "<final>", "<isolated>")
)


# A share of 0.07 is 7 of 100, and not 8.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Split:
    """The held-out prompts in the order of the data, their ids, and their ``plain_id``s."""

    held_out: tuple[Prompt, ...]
    ids: frozenset[str]
    plain: frozenset[str]

    @classmethod
    def of(cls, held_out: Sequence[Prompt]) -> "Split":
        """Return the split that holds out these prompts."""
        return cls(tuple(held_out), frozenset(p.id for p in held_out), frozenset(map(plain_id, held_out)))

    def holds_out(self, prompt: Prompt) -> bool:
        """Return whether this exact prompt is held out."""
        return prompt.id in self.ids

    def copies(self, prompt: Prompt) -> bool:
        """Return whether the prompt equals a held-out one, ignoring case, spaces and Unicode form."""
        return plain_id(prompt) in self.plain


class _Prompts(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Prompt]: ...


def split_held_out(prompts: _Prompts, settings: HeldOut) -> Split:
    """Hold out min(``prompts``, ⌈``share`` · n⌉) of the n distinct ``prompts``; only ids and ``seed`` matter.

    Memory grows with the number of held-out prompts, not with the number of all prompts.

    Raises:
        UserError: no prompt would be left.
    """
    total = len(prompts)
    wanted = min(settings.prompts, math.ceil(settings.share * total - _ROUNDING))
    if total <= wanted:
        raise UserError(f"held_out.prompts: {wanted} of {total} distinct prompts leave none to train on")
    ranked = nsmallest(wanted, enumerate(prompts), key=lambda item: content_hash([settings.seed, item[1].id]))
    return Split.of([prompt for _, prompt in sorted(ranked, key=lambda item: item[0])])


def plain_id(prompt: Prompt) -> str:
    """Return a hash of the prompt's contents, ignoring case, spaces and Unicode form (``_plain``)."""
    return content_hash([[m.role, _plain(m.content)] for m in prompt.messages])


def _plain(text: str) -> str:
    """Return ``text`` without case, runs of spaces, invisible characters and styles of characters, in the form NFC.

    Not in NFKC, which makes x² the same as x2, and ½ the same as 1⁄2.
    """
    if not text.isascii():
        text = "".join(c for c in text if c not in _INVISIBLE and unicodedata.category(c) != "Cf")
        # Case folding can undo the form: NFC comes last.
        text = unicodedata.normalize("NFC", "".join(map(_unstyled, text)).casefold())
    return " ".join(text.casefold().split())


def _unstyled(character: str) -> str:
    """Return the character of which ``character`` is only a style, such as full-width or bold; else itself."""
    mapping = unicodedata.decomposition(character)
    return unicodedata.normalize("NFKC", character) if mapping.split(" ")[0] in _STYLES else character
