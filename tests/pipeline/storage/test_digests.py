"""A file is read to be hashed only once on a machine, and always again if it has changed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.digests import REMEMBERED_BYTES, SETTLED_SECONDS, files_sha256, model_digest

# Hashes the files in a fresh process, as a run's children do, and counts the bytes read from them.
COUNTED = """
import hashlib, sys
from pathlib import Path
from pipeline.storage.digests import file_sha256
read, real = 0, hashlib.file_digest
def counting(handle, name):
    global read
    read += Path(handle.name).stat().st_size
    return real(handle, name)
hashlib.file_digest = counting
found = [file_sha256(Path(name)) for name in sys.argv[1:]]
print(read, *found)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/prefloop/digests"


def settled(file: Path, size: int) -> Path:
    """A file of ``size`` zeros that takes no room, and that nobody has changed for a while: its ctime is waited for."""
    with file.open("wb") as handle:
        handle.truncate(size)
    return file


def in_a_child(*files: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", COUNTED, *map(str, files)]
    read, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(read), found


def age(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.storage.digests as digests

    now = digests.time.time()
    monkeypatch.setattr(digests.time, "time", lambda: now + SETTLED_SECONDS + 1)


def test_children_read_a_policy_once_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled(tmp_path / "model.safetensors", REMEMBERED_BYTES)
    age(monkeypatch)
    first = files_sha256([file])
    assert first == [hashlib.sha256(bytes(REMEMBERED_BYTES)).hexdigest()]
    assert [in_a_child(file) for _ in range(3)] == [(0, first)] * 3
    moved = file.rename(tmp_path / "moved.safetensors")
    # Renaming changes a file's ctime, but not that of files in a renamed folder.
    assert in_a_child(moved) == (REMEMBERED_BYTES, first)


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled(tmp_path / "model.safetensors", REMEMBERED_BYTES)
    age(monkeypatch)
    first = files_sha256([file])
    times = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"x")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    read, second = in_a_child(file)
    assert read == REMEMBERED_BYTES and second != first


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    file = settled(tmp_path / "model.safetensors", REMEMBERED_BYTES)
    files_sha256([file])
    assert not cache.exists()


def test_small_files_are_not_remembered(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(monkeypatch)
    files_sha256([settled(tmp_path / "config.json", 100)])
    assert not cache.exists()


def test_a_check_of_the_bytes_reads_them(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled(tmp_path / "model.safetensors", REMEMBERED_BYTES)
    age(monkeypatch)
    right = files_sha256([file])
    (note,) = cache.iterdir()
    note.write_text("0" * 64)
    assert in_a_child(file) == (0, ["0" * 64])
    assert files_sha256([file], reread=True) == right
    note.write_text("not a digest")
    assert in_a_child(file) == (REMEMBERED_BYTES, right)


def test_a_model_folder_is_hashed_file_by_file(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_text(name)
    assert list(model_digest(tmp_path)) == ["a.safetensors", "b.safetensors"]  # type: ignore[arg-type]
