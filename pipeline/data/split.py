"""Held-out prompts, chosen by content: neither row numbers nor the order of rows matter. Torch-free."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

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


def split_held_out(prompts: Iterable[Prompt], settings: HeldOut) -> Split:
    """Hold out ``settings.prompts`` of the distinct ``prompts``; only their ids and ``settings.seed`` matter.

    Memory grows with the number of held-out prompts, not with the number of all prompts.

    Raises:
        UserError: fewer prompts than ``settings.prompts`` + 1.
    """
    ranked = nsmallest(
        settings.prompts + 1,
        enumerate(prompts),
        key=lambda item: content_hash([settings.seed, item[1].id]),
    )
    if len(ranked) <= settings.prompts:
        raise UserError(
            f"held_out.prompts: {settings.prompts} of {len(ranked)} distinct prompts leave none to train on"
        )
    return Split.of([prompt for _, prompt in sorted(ranked[:-1], key=lambda item: item[0])])


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
