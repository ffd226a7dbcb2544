"""Files that appear whole or not at all. Torch-free."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def json_line(value: object) -> str:
    """Return ``value`` as one line of JSON, with its line break."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def json_text(value: object) -> str:
    """Return ``value`` as the text of a JSON file."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(file: Path, value: object, still: Callable[[], bool] = lambda: True) -> None:
    """Write ``value`` so that ``file`` holds either the old content or the new, never a part.

    ``still`` is called once the new content is on disk; if it returns False, the old content stays.
    """
    write_text(file, json_text(value), still)


def write_text(file: Path, text: str, still: Callable[[], bool] = lambda: True) -> None:
    """Write ``text`` as ``write_json`` writes a value."""
    scratch = file.with_name(file.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    if still():
        scratch.replace(file)
    else:
        scratch.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder of a stage that is being written; after a kill, its name holds all of it or nothing."""
    spent = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(spent, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(spent)
    shutil.rmtree(spent, ignore_errors=True)
