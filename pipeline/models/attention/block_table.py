"""Which blocks of a packed stream attend to each other, from its outline in the host's memory.

With numpy and without a loop over tokens or blocks: a stream of 16,384 tokens takes about a millisecond or two, in a
thread beside the passes if it is asked for ahead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from pipeline.models.attention.reach import WHOLE_ROW, Reach

# Tokens of a block: what FlexAttention's kernels are tuned for.
BLOCK = 128

_Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class BlockTable:
    """For each block of queries: how many blocks of keys it needs, and which, first; [blocks], [blocks, blocks].

    ``some``: those of which it sees a part; ``all_``: those that all of its tokens see whole.
    """

    some: tuple[Indices, Indices]
    all_: tuple[Indices, Indices]


@dataclass(slots=True)
class Outline:
    """A stream without its tokens, and its tables so far.

    Attributes:
        lengths: [trees] tokens.
        branch, positions: [N] as in ``Packed``.
    """

    lengths: _Numbers
    branch: _Numbers
    positions: _Numbers
    _tables: dict[tuple[Reach, int], BlockTable] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, compare=False)

    def table(self, reach: Reach, count: int) -> BlockTable:
        """Return the table for layers of ``reach``, of this stream filled up to ``count`` tokens by one more tree."""
        # A thread that prepares it and the pass that needs it may come together.
        with self._lock:
            if (reach, count) not in self._tables:
                self._tables[reach, count] = _table(*_occupied(self._filled(count), reach))
            return self._tables[reach, count]

    def _filled(self, count: int) -> "Outline":
        missing = count - len(self.branch)
        if not missing:
            return self
        nothing = np.zeros(missing, dtype=np.int64)
        lengths = np.append(self.lengths, missing)
        return Outline(lengths, np.append(self.branch, nothing), np.append(self.positions, nothing))


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Parts of prompts and continuations that lie in one block: [P] each, in the order of the stream.

    ``first``, ``last``: tokens; ``start``: number of the first piece of the same prompt or continuation; ``prompt``,
    ``prompt_end``: numbers of the pieces of the prompt before it, none for a prompt.
    """

    first: _Numbers
    last: _Numbers
    start: _Numbers
    prompt: _Numbers
    prompt_end: _Numbers


def _pieces(outline: Outline) -> _Pieces:
    count, ends = len(outline.branch), outline.lengths.cumsum()
    begins = np.zeros(count, dtype=bool)
    begins[0] = begins[ends[:-1]] = True
    begins[1:] |= outline.branch[1:] != outline.branch[:-1]
    cuts = begins.copy()
    cuts[::BLOCK] = True
    first = np.flatnonzero(cuts)
    last = np.append(first[1:], count) - 1
    # Of each piece: the number of its run of tokens, then that run's first piece.
    run = begins[first].cumsum() - 1
    run_start = np.flatnonzero(begins[first])
    tree_of_run = np.searchsorted(ends, first[run_start], side="right")
    prompt_run = np.searchsorted(tree_of_run, tree_of_run)
    run_end = np.append(run_start[1:], len(first))
    own_prompt = prompt_run == np.arange(len(run_start))
    prompt, prompt_end = run_start[prompt_run], np.where(own_prompt, run_start[prompt_run], run_end[prompt_run])
    return _Pieces(first, last, run_start[run], prompt[run], prompt_end[run])


def _occupied(outline: Outline, reach: Reach) -> tuple[_Flags, _Flags]:
    """Block pairs where any query token attends to any key token, and where all do: [blocks, blocks]."""
    blocks = -(-len(outline.branch) // BLOCK)
    pieces, some = _pieces(outline), np.zeros(blocks * blocks, dtype=bool)
    visible = np.zeros(blocks * blocks, dtype=np.int64)
    for query, key in _pairs(pieces):
        place = pieces.first[query] // BLOCK * blocks + pieces.first[key] // BLOCK
        seen, whole = _seen(outline.positions, pieces, query, key, reach)
        some[place[seen]] = True
        sizes = (pieces.last - pieces.first + 1)[query] * (pieces.last - pieces.first + 1)[key]
        visible += np.bincount(place[whole], sizes[whole], blocks * blocks).astype(np.int64)
    return some.reshape(blocks, blocks), (visible == BLOCK * BLOCK).reshape(blocks, blocks)


def _pairs(pieces: _Pieces) -> Iterator[tuple[_Numbers, _Numbers]]:
    """Yield pairs of pieces of which a token of the first may see one of the second."""
    numbers = np.arange(len(pieces.first))
    for start, stop in ((pieces.start, numbers + 1), (pieces.prompt, pieces.prompt_end)):
        sizes = stop - start
        query = np.repeat(numbers, sizes)
        yield query, np.arange(len(query)) - np.repeat(sizes.cumsum() - sizes, sizes) + np.repeat(start, sizes)


def _seen(positions: _Numbers, pieces: _Pieces, query: _Numbers, key: _Numbers, reach: Reach) -> tuple[_Flags, _Flags]:
    """For pairs of pieces: whether any token of the query's sees one of the key's, and whether all see all."""
    same = query == key
    one = same & (pieces.first == pieces.last)[query]
    if reach == WHOLE_ROW:
        return np.ones_like(same), ~same | one
    earliest, latest = (_first(reach, positions[at[query]]) for at in (pieces.first, pieces.last))
    return same | (positions[pieces.last[key]] >= earliest), (~same | one) & (positions[pieces.first[key]] >= latest)


def _first(reach: Reach, positions: _Numbers) -> _Numbers:
    """As ``Reach.first``, in numpy."""
    if reach.kind == "window":
        return positions - reach.size + 1
    return positions // reach.size * reach.size


def _table(some: _Flags, all_: _Flags) -> BlockTable:
    return BlockTable(_ordered(some & ~all_), _ordered(all_))


def _ordered(occupied: _Flags) -> tuple[Indices, Indices]:
    counts = occupied.sum(-1, dtype=np.int32)
    return counts, np.argsort(~occupied, axis=-1, kind="stable").astype(np.int32)
