"""What is left of a prompt without case, spaces and Unicode form, by which copies are found. Torch-free."""

import unicodedata

from pipeline.types import Prompt, content_hash

# Invisible characters that Unicode does not count as formats (Cf): fillers, joiners, variation selectors.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))
# Tags of mappings (Unicode Standard Annex 44) between styles of one character. Not <super>, <sub>, <fraction>, <circle>
# and the like, which change what a formula means.
_STYLES = frozenset(("<wide>", "<narrow>", "<small>", "<font>", "<noBreak>", "<vertical>")) | frozenset(
    ("<initial>", "<medial>", "<final>", "<isolated>")
)


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


def plain_start(prompt: Prompt) -> str:
    """Return the plain text of the last turn after a hash of the earlier ones: prompts may begin with each other."""
    return f"{plain_id(Prompt(prompt.messages[:-1]))} {_plain(prompt.messages[-1].content)}"
