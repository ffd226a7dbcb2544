"""Time and sizes that one rendering of a foreign template may use. Torch-free."""

import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from jinja2 import TemplateRuntimeError

CPU_SECONDS = 10.0  # of one rendering; known templates take milliseconds, or a second for millions of characters
LARGEST_TEXT = 1 << 25  # characters of a text, or of a list written out; a million tokens have about 5 million
MOST_MADE = 1 << 29  # characters of all texts and lists that one rendering makes
ITEM = 8  # characters that an item of a list counts as: a pointer's bytes
CHARACTER = 64  # characters that a text of one character counts as: an object's bytes
_OVERHEAD = 32  # characters that any text, list or number counts as, besides its own
_NUMBER_BITS = 1 << 16
_STEP = 1 << 10  # characters of which the work is like that of one step
_LOOK = 1 << 16  # characters' work between two looks at the clock
CONTAINERS: tuple[type[Collection[Any]], ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class Meter:
    """The CPU time and the characters that one rendering has left."""

    def __init__(self) -> None:
        self._work = 0
        self._made = 0
        self._end = time.thread_time() + CPU_SECONDS

    def step(self, size: int = 0) -> None:
        """Count one step that reads ``size`` characters. Raises ``TemplateRuntimeError`` when the time is up."""
        self._work += _STEP + size
        if self._work >= _LOOK:
            self._work = 0
            if time.thread_time() > self._end:
                raise TemplateRuntimeError(f"takes more than {CPU_SECONDS:g} s of CPU time; does it loop?")

    def weight(self, value: object, indent: int = 0) -> int:
        """Return about how many characters ``value`` has when it is written out, and count the work of reading it.

        A list that is in a list twice counts twice, as whatever writes or compares lists reads it twice.

        Args:
            value: anything; what is no text, number or container counts as one item.
            indent: characters that each level of containers puts before an item.

        Raises:
            TemplateRuntimeError: more than ``LARGEST_TEXT`` characters.
        """
        total, depth, level = _size(value), 0, [value]
        require_length(total)
        while level := [item for item in level if isinstance(item, CONTAINERS)]:
            depth += 1
            below: list[object] = []
            for item in level:
                for part in (item.keys(), item.values()) if isinstance(item, dict) else (item,):
                    total += (ITEM + indent * depth) * len(part)
                    require_length(total)
                    below.extend(part)
            total += sum(map(_size, below))
            require_length(total)
            level = below
        self.step(total)
        return total

    def make(self, value: Any, size: int | None = None) -> Any:
        """Count a ``value`` that the template made; ``size``: its characters, if they are not those of its surface.

        Raises:
            TemplateRuntimeError: it is larger than ``LARGEST_TEXT``, or all together are larger than ``MOST_MADE``.
        """
        if size is None:
            if value is None or isinstance(value, bool | range):
                return value
            size = ITEM * len(value) if isinstance(value, CONTAINERS) else _size(value)
        require_length(size)
        if isinstance(value, int):
            require_bits(value.bit_length())
        self._count(size)
        self.step(size)
        return value

    def joined(self, left: str, right: str) -> str:
        """Return both texts as one, counted as a step and a value that is made: what templates do most."""
        size = len(left) + len(right)
        require_length(size)
        self._count(size)
        self.step(_STEP + size)
        return left + right

    def shown(self, text: str) -> str:
        """Return a text that is written out: weighed, and counted as made."""
        size = len(text)
        require_length(size)
        self._count(size)
        self.step(_STEP + 2 * size)
        return text

    def _count(self, size: int) -> None:
        self._made += _OVERHEAD + size
        if self._made > MOST_MADE:
            raise TemplateRuntimeError(f"makes texts and lists of more than {MOST_MADE} characters in all")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield ``items``, each a step; the characters of a text are texts that are made."""
        if isinstance(items, str | bytes):
            for item in items:
                self.make(item, CHARACTER)
                yield item
            return
        for item in items:
            self.step()
            yield item

    def listed(self, items: Any) -> Any:
        """Return the items of an iterator as a list that was counted; anything else as it is."""
        return self.make(list(self.counted(items))) if isinstance(items, Iterator) else items


def require_length(length: int) -> None:
    """Raise ``TemplateRuntimeError`` for more than ``LARGEST_TEXT`` characters or items."""
    if length > LARGEST_TEXT:
        raise TemplateRuntimeError(f"a text or list of {length} items; at most {LARGEST_TEXT}")


def require_bits(bits: int) -> None:
    """Raise ``TemplateRuntimeError`` for a number of thousands of digits."""
    if bits > _NUMBER_BITS:
        raise TemplateRuntimeError(f"a number of {bits} bits")


def _size(value: object) -> int:
    """Characters of a text or number, items of a range; 0 for anything else."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3
    return ITEM * len(value) if isinstance(value, range) else 0
