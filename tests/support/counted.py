"""Rows that are made one after the other, all at once, with the counts of those that were dropped."""

from collections import Counter
from collections.abc import Callable
from typing import Any


def counted(make: Callable[..., Any], *args: Any, **settings: Any) -> tuple[list[Any], dict[str, int]]:
    """What ``make`` makes, and its ``dropped``."""
    dropped = Counter[str]()
    return [*make(*args, **settings, dropped=dropped)], dict(dropped)
