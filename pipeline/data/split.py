"""Held-out prompts, chosen by content: neither row numbers nor the order of rows matter. Torch-free."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Protocol

from pipeline.config import HeldOut
from pipeline.data.forms.plain import plain_id
from pipeline.errors import UserError
from pipeline.types import Prompt, content_hash
from pipeline.types.counts import number_of

# A share of 0.07 is 7 of 100, and not 8.
_ROUNDING = 1e-9
# The default of gate.min_prompts, and the part of all prompts that it may cost.
_ENOUGH, _QUARTER = 20, 4


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


def split_held_out(prompts: _Prompts, settings: HeldOut, together: Mapping[str, str] | None = None) -> Split:
    """Hold out min(``prompts``, ⌈``share`` · n⌉) of the n distinct ``prompts``; only ids and ``seed`` matter.

    The share is never less than 20 prompts if these are at most a quarter: with fewer, a gate judges nothing.
    Groups of prompts are held out whole, in the order of their hash, as far as they fit: a group that is larger than
    this number is trained on. Memory grows with the number of held-out prompts and of those in groups.

    Args:
        prompts: with distinct ids.
        settings: the section held_out.
        together: the group of each prompt that belongs to others, by id.

    Raises:
        UserError: no prompt would be left, or no group is small enough.
    """
    together, total = together or {}, len(prompts)
    shared = math.ceil(settings.share * total - _ROUNDING)
    wanted = min(settings.prompts, max(shared, _ENOUGH) if total >= _QUARTER * _ENOUGH else shared)
    if total <= wanted:
        raise UserError(
            f"held_out.prompts: {settings.prompts} (held_out.share: {settings.share:g}) would hold out {wanted} of "
            f"{number_of(total, 'distinct prompt')} and leave none to train on; allowed: fewer, or more prompts"
        )
    sizes = Counter(together[prompt.id] for prompt in prompts if prompt.id in together) if together else {}
    chosen = _whole_groups(prompts, wanted, lambda prompt: together.get(prompt.id, prompt.id), sizes, settings.seed)
    if not chosen:
        raise UserError(
            f"held_out.prompts: {wanted} of {total} distinct prompts are to be held out, but the smallest of "
            f"{len(sizes)} groups has {min(sizes.values())}, which stay together (held_out.by, or prompts that begin "
            "with each other)"
        )
    return Split.of([prompt for _, prompt in sorted(chosen, key=lambda item: item[0])])


def _whole_groups(
    prompts: _Prompts, wanted: int, group_of: Callable[[Prompt], str], sizes: Mapping[str, int], seed: int
) -> list[tuple[int, Prompt]]:
    """Return up to ``wanted`` prompts with their places, in whole groups; ``sizes``: of groups of several prompts."""
    chosen: list[tuple[int, Prompt]] = []
    taken: set[str] = set()
    while wanted > len(chosen):
        left = wanted - len(chosen)
        fitting = (
            (group, place, prompt)
            for place, prompt in enumerate(prompts)
            if sizes.get(group := group_of(prompt), 1) <= left and group not in taken
        )
        ranked = nsmallest(left, fitting, key=lambda item: (content_hash([seed, item[0]]), item[1]))
        found = Counter(group for group, _, _ in ranked)
        # Only the last group can be cut; what it leaves is filled with smaller ones.
        whole = {group for group, count in found.items() if count >= sizes.get(group, 1)}
        if not whole:
            break
        chosen += [(place, prompt) for group, place, prompt in ranked if group in whole]
        taken |= whole
    return chosen
