"""Which tokens two responses do not share."""

from collections.abc import Sequence
from difflib import SequenceMatcher

Flags = tuple[bool, ...]


def edits(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[Flags, Flags]:
    """Which tokens of either response are replaced, inserted or deleted to get from one to the other.

    The edited spans of BMC (arXiv:2408.07471), over tokens; the paper leaves out stop words, here they
    count as any other.

    >>> edits((5, 6, 7), (5, 8, 8, 7))
    ((False, True, False), (False, True, True, False))
    """
    found = ([True] * len(chosen), [True] * len(rejected))
    # Junk heuristics would call frequent tokens edited in every long response.
    for block in SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks():
        for flags, start in zip(found, (block.a, block.b), strict=True):
            flags[start : start + block.size] = [False] * block.size
    return tuple(found[0]), tuple(found[1])
