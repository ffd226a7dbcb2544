"""The tokens that two responses do not share. Torch-free."""

from collections.abc import Sequence
from difflib import SequenceMatcher

Flags = tuple[bool, ...]


def edits(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[Flags, Flags]:
    """Flag the tokens of each response that are replaced, inserted or deleted to turn one into the other.

    The edited spans of BMC (arXiv:2408.07471), over tokens; the paper leaves out stop words, here they
    count like any other word.

    >>> edits((5, 6, 7), (5, 8, 8, 7))
    ((False, True, False), (False, True, True, False))
    """
    found = ([True] * len(chosen), [True] * len(rejected))
    # The authors' code uses difflib; a minimal edit script marks other tokens. Its junk heuristics are off: in long
    # responses they would always count frequent tokens as edited.
    for block in SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks():
        for flags, start in zip(found, (block.a, block.b), strict=True):
            flags[start : start + block.size] = [False] * block.size
    return tuple(found[0]), tuple(found[1])
