"""Temporary tables on a disk that is full: the folder is named, and how to choose another."""

import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.data.spool.distinct import DistinctPrompts, Firsts
from pipeline.errors import RunError
from pipeline.types import Message, Prompt

MIB = 1 << 20


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that cannot hold more than 1 MiB in a file."""
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def prompts() -> Callable[[str], object]:
    distinct = DistinctPrompts()
    return lambda text: distinct.add(Prompt((Message("user", text),)))


def keys() -> Callable[[str], object]:
    firsts = Firsts()
    return lambda text: firsts.add(text, "")


@pytest.mark.parametrize("holder", [prompts, keys])
def test_a_full_disk_is_named_with_the_way_to_another(
    holder: Callable[[], Callable[[str], object]], full: Path
) -> None:
    add = holder()
    with pytest.raises(RunError, match=rf"^{re.escape(str(full))}: rows are kept there.*SQLITE_TMPDIR"):
        for number in range(64):
            add(f"{number} " * (MIB // 4))
