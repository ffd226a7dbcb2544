"""The nearest of the names that are allowed, for messages. Torch-free."""

import difflib
from collections.abc import Iterable


def nearest(text: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no name is near."""
    close = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
