"""SHA-256 of files, computed once a process as long as a file stays as it is. Torch-free."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

# Hashing lets other threads run: the shards of a large model are read side by side.
_CHUNK_BYTES = 8
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Version:
    """A file as it is now, wherever it is moved to."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    path: Path = field(compare=False)


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; of one that has not changed since, what was found the last time."""
    return _sha256(_version(file))


def prefix_sha256(file: Path, size: int) -> str:
    """SHA-256 of a file's first ``size`` bytes."""
    version = _version(file)
    return _sha256(version) if size == version.size else _prefix_sha256(version, size)


def files_sha256(files: Sequence[Path]) -> list[str]:
    """Of several files, side by side."""
    if len(files) < 2:
        return [file_sha256(file) for file in files]
    with ThreadPoolExecutor(min(_CHUNK_BYTES, os.cpu_count() or 1, len(files))) as pool:
        return list(pool.map(file_sha256, files))


def _version(file: Path) -> _Version:
    facts = file.stat()
    return _Version(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, file)


@lru_cache(maxsize=65536)
def _sha256(version: _Version) -> str:
    with version.path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@lru_cache(maxsize=65536)
def _prefix_sha256(version: _Version, size: int) -> str:
    total, left = hashlib.sha256(), size
    with version.path.open("rb") as handle:
        while left and (block := handle.read(min(left, _BLOCK))):
            total.update(block)
            left -= len(block)
    return total.hexdigest()


def digest(files: Iterable[Path], sizes: Sequence[int] | None = None) -> str:
    """Of names, sizes and contents; with ``sizes``, of no more than so many bytes of each file."""
    total, found = hashlib.sha256(), [*files]
    ends = [file.stat().st_size for file in found] if sizes is None else sizes
    contents = files_sha256(found) if sizes is None else map(prefix_sha256, found, sizes)
    for file, size, content in zip(found, ends, contents, strict=True):
        total.update(f"{file.name}:{size}:{content}\n".encode())
    return total.hexdigest()[:16]


def model_digest(path: Path) -> JsonValue:
    """Of each file of a model folder; a hub name has none here."""
    return (
        {file.name: digest([file]) for file in sorted(path.iterdir()) if file.is_file()} if path.is_dir() else str(path)
    )
