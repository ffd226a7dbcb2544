"""Held-out prompts, chosen by content: neither row numbers nor the order of rows matter. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from pipeline.config import HeldOut
from pipeline.errors import UserError
from pipeline.types import Prompt, content_hash


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
        """Return whether the prompt equals a held-out one, ignoring case and spaces."""
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
    """Return a hash of the prompt's contents, ignoring case and spaces."""
    return content_hash([[m.role, " ".join(m.content.casefold().split())] for m in prompt.messages])
