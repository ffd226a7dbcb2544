"""Counts with their nouns, as people read them. Torch-free."""


def number_of(count: float, one: str, more: str | None = None) -> str:
    """Return ``1 step``, ``1,200 steps`` or ``0.5 seconds``.

    Args:
        one: the noun of a single thing.
        more: the noun of several; default: with an s.
    """
    shown = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{shown} {one if count == 1 else more or f'{one}s'}"
