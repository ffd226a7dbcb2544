"""How often rows of the user's data are parsed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.data import reading


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """Calls so far of what parses a row, by name."""
    calls = Counter[str]()

    def counting(name: str) -> Callable[..., Any]:
        work = vars(reading)[name]

        def counted(*given: Any) -> Any:
            calls[name] += 1
            return work(*given)

        return counted

    for name in ("preference_of", "prompt_of"):
        monkeypatch.setattr(reading, name, counting(name))
    return lambda: dict(calls)
