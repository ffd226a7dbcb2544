"""SHA-256 of files, computed once for an unchanged file: small ones per process, weights per machine. Torch-free.

A run's children start anew each round, and each would read a policy of many gigabytes again only to hash it. So the
digest of a large file is remembered in the user's cache, under the file's identity: device, inode, size and the times
of its last change, in nanoseconds. Only the user can write there, and the cache may be deleted at any time.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from pipeline.storage.cores import usable_cores

# Hashing lets other threads run: the shards of a large model are read in parallel.
_THREADS = 8
_BLOCK = 1 << 20
# Files of at least this size are remembered, and the seconds since a file's last change from which its times tell
# whether it has changed again: some file systems count whole seconds.
REMEMBERED_BYTES, SETTLED_SECONDS = 1 << 26, 2.0


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


def files_sha256(files: Sequence[Path], *, reread: bool = False) -> list[str]:
    """Return the SHA-256 of several files, hashed in parallel; ``reread``: read also those that are remembered."""
    one = _read_sha256 if reread else file_sha256
    if len(files) < 2:
        return [one(file) for file in files]
    with ThreadPoolExecutor(min(_THREADS, usable_cores(), len(files))) as pool:
        return list(pool.map(one, files))


def _read_sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _version(file: Path) -> _Version:
    facts = file.stat()
    return _Version(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, file)


@lru_cache(maxsize=65536)
def _sha256(version: _Version) -> str:
    if version.size < REMEMBERED_BYTES:
        return _read_sha256(version.path)
    note = _note(version)
    found = _noted(note)
    if found is not None:
        return found
    settled = time.time() - max(version.modified, version.changed) / 1e9 > SETTLED_SECONDS
    found = _read_sha256(version.path)
    if settled and _version(version.path) == version:
        _write_note(note, found)
    return found


def _note(version: _Version) -> Path:
    """Return the file that holds the digest of ``version``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    facts = (version.device, version.inode, version.size, version.modified, version.changed)
    return cache / "prefloop" / "digests" / "-".join(map(str, facts))


def _noted(note: Path) -> str | None:
    try:
        facts, text = note.stat(), note.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    # Somebody else's word is not taken.
    return text if facts.st_uid == os.geteuid() and re.fullmatch("[0-9a-f]{64}", text) else None


def _write_note(note: Path, digest_: str) -> None:
    new = note.with_name(f"{note.name}.{uuid4().hex}")
    # Without a place for it, the file is read again.
    with suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_text(digest_, encoding="ascii")
        new.replace(note)


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
    if not path.is_dir():
        return str(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    # Side by side; below they are known.
    files_sha256(files)
    return {file.name: digest([file]) for file in files}
