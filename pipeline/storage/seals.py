"""Finished files of a stage that is being written, each with its SHA-256, for a later try to continue from.

The SHA-256 is recorded before the file appears under its name, so that no kill leaves a file without one. A file
that has changed since is made again. Torch-free.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import MANIFEST, DamagedError, read_manifest
from pipeline.types import content_hash

SEALS = ".seals.jsonl"
# Identifies the stage that is being written, and records the seconds spent on it.
MARKER = "key.json"
# Records the SHA-256 of a whole file that does not yet have its final name.
Seal = Callable[[Path], None]

logger = logging.getLogger(__name__)


class Seals:
    """The finished files of ``folder``, by their paths in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = _read(folder / SEALS)

    def hold(self, name: str) -> bool:
        """Return whether the file ``name`` is there as it was written; log a warning if it has changed."""
        file = self._folder / name
        if not file.is_file():
            return False
        if self._told.get(name) == file_sha256(file):
            return True
        logger.warning("%s: not as it was written (SHA-256); it is made again", file)
        return False

    def sha256(self, name: str) -> str:
        """Return the SHA-256 that was recorded of the file ``name``. Raises ``KeyError`` if there is none."""
        return self._told[name]

    def of(self, name: str) -> Seal:
        """Return a function that records the SHA-256 of the file that will have this name."""
        return lambda content: self._note({name: file_sha256(content)})

    def text(self, name: str, text: str) -> None:
        """Record the SHA-256 of a text under ``name``."""
        self._note({name: sha256(text.encode()).hexdigest()})

    def files(self, files: Iterable[Path]) -> None:
        """Record the SHA-256 of files that exist."""
        self._note({str(file.relative_to(self._folder)): file_sha256(file) for file in files})

    def hold_all(self, name: str) -> bool:
        """Return whether all sealed files of the folder ``name`` are there as they were written."""
        files = [told for told in self._told if told.startswith(f"{name}/")]
        return bool(files) and all(self.hold(file) for file in files)

    def _note(self, digests: Mapping[str, str]) -> None:
        self._told.update(digests)
        with (self._folder / SEALS).open("a", encoding="utf-8") as lines:
            # A line that a kill cut short stays on its own.
            lines.write("".join(f"\n{json.dumps(told)}" for told in digests.items()))
            lines.flush()
            os.fsync(lines.fileno())


def _read(file: Path) -> dict[str, str]:
    try:
        return sealed_files(file.read_bytes())
    except FileNotFoundError:
        return {}


def sealed_files(journal: bytes) -> dict[str, str]:
    """Return the SHA-256 that a journal of seals records, by name."""
    told: dict[str, str] = {}
    for line in journal.splitlines():
        try:
            name, digest = json.loads(line)
            told[str(name)] = str(digest)
        except (ValueError, TypeError, RecursionError):
            continue
    return told


def require_unchanged(folder: Path, facts: Mapping[str, Mapping[str, JsonValue]]) -> None:
    """Raise ``DamagedError`` if a sealed file differs from ``facts``, the stage's present files by path."""
    for journal in folder.rglob(SEALS):
        for name, digest in _read(journal).items():
            place = str((journal.parent / name).relative_to(folder))
            if place in facts and facts[place]["sha256"] != digest:
                raise DamagedError(
                    f"{folder / place}: has changed since it was written (SHA-256); the same command makes it again"
                )


def tried(partial: Path) -> str | None:
    """Return the key of the try that wrote this folder; None if unknown, with a warning if its record is damaged."""
    try:
        return str(json.loads((partial / MARKER).read_text(encoding="utf-8"))["key"])
    except FileNotFoundError:
        damaged = False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        damaged = True
    try:
        manifest = read_manifest(partial / MANIFEST)
    except (FileNotFoundError, DamagedError):
        if damaged:
            logger.warning("%s: not as it was written; the stage starts again", partial / MARKER)
        return None
    return content_hash([manifest.key, manifest.made_from])


def read_seconds(partial: Path) -> float:
    """Return the seconds that earlier tries have recorded."""
    try:
        return float(json.loads((partial / MARKER).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0.0
