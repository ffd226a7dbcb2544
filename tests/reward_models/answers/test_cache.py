"""Labels stay through kill -9, and two processes may write at once."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from reward_models.answers import cache
from reward_models.answers.cache import APPLICATION_ID, LabelCache
from tests.support.places import ROOT

WRITER = """
import sys
from collections import Counter
from pathlib import Path
from reward_models.answers.cache import LabelCache
cache = LabelCache(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    cache.write(f"{sys.argv[2]}{number}", float(number))
    print(number, flush=True)
"""


def writer(file: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(file), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_what_was_written_survives_a_kill_and_two_writers_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    with writer(file, "killed", 10**9) as killed, writer(file, "other", 300) as other:
        assert killed.stdout is not None and other.stdout is not None
        for line in killed.stdout:
            if int(line) == 300:
                break
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        other.stdout.read()
        assert other.wait() == 0
    found = LabelCache(file).read([f"{name}{number}" for name in ("killed", "other") for number in range(300)])
    assert len(found) == 600 and found["killed299"] == (299.0, None)


def test_a_key_keeps_its_first_label(tmp_path: Path) -> None:
    cache = LabelCache(tmp_path / "deeper" / "labels.sqlite")
    cache.write("a", 1.0)
    cache.write("a", 2.0)
    cache.write("b", None, "unparsed")
    assert cache.read(["a", "b", "c"]) == {"a": (1.0, None), "b": (None, "unparsed")}
    many = [str(number) for number in range(2000)]
    for key in many:
        cache.write(key, 0.5)
    assert len(cache.read(many)) == 2000
    cache.close()
    assert LabelCache(tmp_path / "deeper" / "labels.sqlite").read(["a"])["a"] == (1.0, None)


def test_a_label_that_changed_on_the_disk_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "labels.sqlite"
    cache = LabelCache(file)
    for key in "abc":
        cache.write(key, 1.0)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE labels SET value = 2.0 WHERE key = 'a'")
        database.execute("UPDATE labels SET missing = CAST(x'ff' AS TEXT) WHERE key = 'b'")
    database.close()
    assert cache.read(["a", "b", "c"]) == {"c": (1.0, None)}
    assert "labels.sqlite: 2 labels changed on disk" in caplog.text
    cache.write("a", 3.0)
    cache.write("c", 3.0)
    assert cache.read(["a", "b", "c"]) == {"a": (3.0, None), "c": (1.0, None)}
    cache.close()


def test_a_cache_of_another_layout_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE labels (key TEXT PRIMARY KEY, value REAL, missing TEXT) WITHOUT ROWID")
        database.execute("INSERT INTO labels VALUES ('a', 1, NULL), ('b', NULL, 'unparsed')")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    cache = LabelCache(file)
    with pytest.raises(UserError, match=r"labels\.sqlite: is a database, but not a label cache of this version"):
        cache.read(["a"])
    cache.close()
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT key, value FROM labels").fetchall() == [("a", 1.0), ("b", None)]
    database.close()


def test_whatever_is_damaged_no_label_is_another(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    cache = LabelCache(file)
    told = {f"{number:064x}": (number / 7, None) for number in range(300)}
    for key, (value, _) in told.items():
        cache.write(key, value)
    cache.close()
    whole, ends = file.read_bytes(), Counter[str]()
    for number in range(300):
        lots, data = random.Random(number), bytearray(whole)
        if number % 10:
            data[lots.randrange(len(data))] ^= 1 << lots.randrange(8)
        else:
            del data[lots.randrange(len(data)) :]
        file.write_bytes(data)
        damaged = LabelCache(file)
        try:
            found = damaged.read([*told])
            damaged.write(f"{1:064x}", 1 / 7)
        except UserError as error:
            assert "labelling.cache" in str(error) and "labels.sqlite" in str(error)
            ends["refused"] += 1
        else:
            assert found.items() <= told.items()
            ends["read" if len(found) == len(told) else "fewer"] += 1
        damaged.close()
        for left in (tmp_path / "labels.sqlite-wal", tmp_path / "labels.sqlite-shm"):
            left.unlink(missing_ok=True)
    assert min(ends[end] for end in ("refused", "read", "fewer")) > 3, ends


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name, content in (("text", b"not a database, though it is long enough to be one" * 30), ("other", None)):
        file = tmp_path / name
        if content is None:
            with sqlite3.connect(file) as database:
                database.execute("CREATE TABLE mine (x)")
            database.close()
        else:
            file.write_bytes(content)
        before = file.read_bytes()
        with pytest.raises(UserError, match=rf"labelling\.cache: .*{name}: .*move it away or name another file"):
            LabelCache(file).read(["a"])
        assert content is None or file.read_bytes() == before
    with pytest.raises(UserError, match=r"labelling\.cache"):
        LabelCache(tmp_path / "text" / "labels.sqlite").write("a", 1.0)


def test_writers_that_make_a_file_at_the_same_moment_do_not_meet_either(tmp_path: Path) -> None:
    """SQLite gives up at once where two turn on its log of writes; 3 files of 100 are hit."""
    refused: list[UserError] = []

    def write(file: Path, key: str, together: threading.Barrier) -> None:
        together.wait()
        try:
            LabelCache(file).write(key, 1.0)
        except UserError as error:
            refused.append(error)

    for number in range(150):
        together = threading.Barrier(4)
        given = [(tmp_path / f"{number}.sqlite", key, together) for key in "abcd"]
        threads = [threading.Thread(target=write, args=one) for one in given]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not refused


@pytest.mark.parametrize(("shared", "journal"), [(False, "wal"), (True, "delete")])
def test_machines_that_share_a_file_share_no_memory(
    shared: bool, journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that was made on a local disk, too, once it is on a shared one."""
    file = tmp_path / "labels.sqlite"
    with_log = LabelCache(file)
    with_log.write("k", 1.0)
    with_log.close()
    monkeypatch.setattr(cache, "is_shared", lambda path: shared and path == file)
    again = LabelCache(file)
    assert again.read(["k"]) == {"k": (1.0, None)}
    again.write("l", 2.0)
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (journal,)
    database.close()
    again.close()
