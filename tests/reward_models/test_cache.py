"""Labels stay through kill -9, and two processes may write at once."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.types import UserError
from reward_models.cache import LabelCache

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from reward_models.cache import LabelCache
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
