"""SHA-256 of files, computed once per process for an unchanged file. Torch-free."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

# Hashing lets other threads run: the shards of a large model are read in parallel.
_CHUNK_BYTES = 8
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Version:
    """The current version of a file, even if it is moved."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    path: Path = field(compare=False)


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; an unchanged file is not read again."""
    return _sha256(_version(file))


def prefix_sha256(file: Path, size: int) -> str:
    """Return the SHA-256 of a file's first ``size`` bytes."""
    version = _version(file)
    return _sha256(version) if size == version.size else _prefix_sha256(version, size)


def files_sha256(files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of several files, hashed in parallel."""
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
    """Return a hash of names, sizes and contents; ``sizes`` limits the bytes read of each file."""
    total, found = hashlib.sha256(), [*files]
    ends = [file.stat().st_size for file in found] if sizes is None else sizes
    contents = files_sha256(found) if sizes is None else map(prefix_sha256, found, sizes)
    for file, size, content in zip(found, ends, contents, strict=True):
        total.update(f"{file.name}:{size}:{content}\n".encode())
    return total.hexdigest()[:16]


def model_digest(path: Path) -> JsonValue:
    """Return a digest for each file of a model folder; hub names are not hashed."""
    return (
        {file.name: digest([file]) for file in sorted(path.iterdir()) if file.is_file()} if path.is_dir() else str(path)
    )
