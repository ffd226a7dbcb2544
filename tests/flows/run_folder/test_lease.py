import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flows.loop.preparation import prepare_run
from flows.run_folder import lease
from flows.run_folder.lease import LEASE_FILE, Holder, hold, read_holder
from pipeline.config.files import load_config
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json
from tests.support.places import ROOT
from tests.support.tiny_run import make_job

HOLDS = """
import sys, time
from pathlib import Path
from flows.run_folder.lease import hold
with hold(Path(sys.argv[1]), 0.05):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = Holder("t", "far", "another boot", 7, 0.0, "prefloop run x", "2001-01-01T00:00:00Z", 3, patience=0.4)


@contextmanager
def another_process(root: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDS, str(root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def without_locks(patch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    patch.setattr(fcntl, "flock", flock)


def test_a_second_run_is_refused_and_names_host_and_process(tmp_path: Path) -> None:
    with another_process(tmp_path) as process, pytest.raises(UserError) as error, hold(tmp_path):
        pass
    assert f"process {process.pid} on {os.uname().nodename}" in str(error.value)


def test_without_the_kernels_locks_the_lease_alone_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    with (
        another_process(tmp_path) as process,
        pytest.raises(UserError, match=f"process {process.pid} "),
        hold(tmp_path),
    ):
        pass


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_process_held_is_taken_over_at_once(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not locks:
        without_locks(monkeypatch)
    with another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with hold(tmp_path):
            assert (holder := read_holder(tmp_path / LEASE_FILE)) is not None and holder.pid == os.getpid()
    said = capsys.readouterr().err
    assert f"taken over from process {process.pid} " in said and "waiting" not in said
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_holder_elsewhere_that_shows_no_sign_of_life_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A clock ahead of ours makes nobody alive.
    write_json(tmp_path / LEASE_FILE, asdict(replace(ELSEWHERE, beat="2999-01-01T00:00:00Z")))
    started = time.monotonic()
    with hold(tmp_path) as lease:
        assert time.monotonic() - started >= 0.4
        lease.check()
    said = capsys.readouterr().err
    assert "0.4 s for a sign of life from process 7 on far" in said and "taken over from process 7 on far" in said


@pytest.mark.parametrize("full", [False, True])
def test_a_holder_elsewhere_whose_heart_beats_is_refused(tmp_path: Path, full: bool) -> None:
    # Its clock is years behind ours.
    file, stop = tmp_path / LEASE_FILE, threading.Event()
    write_json(file, asdict(replace(ELSEWHERE, patience=20.0)))

    def beat() -> None:
        beats = 4
        while not stop.wait(0.05):
            if full:
                os.utime(file)
            else:
                write_json(file, asdict(replace(ELSEWHERE, beats=beats, patience=20.0)))
            beats += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 7 on far"), hold(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()
    assert (found := read_holder(file)) is not None and found.token == "t"


def test_a_lease_that_was_half_written_is_waited_for_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LEASE_FILE).write_text('{"token": ')
    with hold(tmp_path, patience=0.2) as lease:
        lease.check()
    assert "taken over from a process that left no name" in capsys.readouterr().err


def contend(root: Path) -> list[str]:
    """What each of four that want the run at once gets."""
    got: list[str] = []
    done = threading.Event()

    def take() -> None:
        try:
            with hold(root):
                got.append("held")
                done.wait(100)
        except UserError:
            got.append("refused")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(got) == 4)
    done.set()
    for thread in threads:
        thread.join()
    return sorted(got)


def test_of_four_that_take_over_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    write_json(tmp_path / LEASE_FILE, asdict(ELSEWHERE))
    assert contend(tmp_path) == ["held", "refused", "refused", "refused"]


def test_one_gets_it_however_the_takeovers_interleave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)

    def changes(file: Path, patience: float, holder: Holder | None) -> bool:
        time.sleep(random.random() / 1000)
        # Who is writing a claim is alive.
        return holder is None

    monkeypatch.setattr(lease, "_changes", changes)
    for attempt in range(100):
        root = tmp_path / str(attempt)
        root.mkdir()
        write_json(root / LEASE_FILE, asdict(ELSEWHERE))
        assert contend(root) == ["held", "refused", "refused", "refused"]
        assert [file.name for file in root.iterdir()] == [".lock"]


def test_a_successor_that_died_before_it_took_over_is_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_locks(monkeypatch)
    write_json(tmp_path / LEASE_FILE, asdict(ELSEWHERE))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lease, "write_json", die)
        with pytest.raises(KeyboardInterrupt), hold(tmp_path):
            pass
    # The process that made the claim lives on here, so the next asks it for a sign of life first.
    monkeypatch.setattr(lease, "runs", lambda holder: False)
    with hold(tmp_path) as held:
        held.check()
        assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == [LEASE_FILE]
    assert f"taken over from process {os.getpid()} " in capsys.readouterr().err


def test_who_was_taken_over_from_notices_and_leaves_the_lease_alone(tmp_path: Path) -> None:
    with hold(tmp_path, every=1.0) as lease:
        lease.require()
        write_json(tmp_path / LEASE_FILE, asdict(ELSEWHERE))

        def lost() -> bool:
            try:
                lease.require()
            except RunError as error:
                return "taken over by process 7 on far" in str(error)
            return False

        wait_for(lost)
    assert (found := read_holder(tmp_path / LEASE_FILE)) is not None and found.token == "t"


def test_a_heartbeat_that_the_disk_held_up_does_not_undo_a_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, fsync, held_up = tmp_path / LEASE_FILE, os.fsync, threading.Event()

    def taken_over_meanwhile(descriptor: int) -> None:
        if threading.current_thread().name == "lease" and not held_up.is_set():
            file.write_text(json.dumps(asdict(ELSEWHERE)))
            held_up.set()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", taken_over_meanwhile)
    with hold(tmp_path, every=0.05) as lease:
        assert held_up.wait(20)
        wait_for(lambda: lease._lost is not None)
        with pytest.raises(RunError, match="taken over by process 7 on far"):
            lease.require()
    assert (found := read_holder(file)) is not None and found.token == "t"


def test_a_folder_that_is_gone_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with hold(root) as lease:
        root.rename(tmp_path / "elsewhere")
        with pytest.raises(RunError, match="is gone; was the run folder moved, removed or unmounted"):
            lease.check()


def test_what_kills_left_of_heartbeats_and_takeovers_goes(tmp_path: Path) -> None:
    for name in ("lease.json.tmp", "lease.json.0123"):
        (tmp_path / name).write_text("{")
    with hold(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", LEASE_FILE]


def test_hearts_beat(tmp_path: Path) -> None:
    with hold(tmp_path, every=0.02):
        wait_for(lambda: json.loads((tmp_path / LEASE_FILE).read_text())["beats"] >= 3)
    assert not (tmp_path / LEASE_FILE).exists()


def test_a_folder_that_holds_a_lease_alone_is_empty(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / LEASE_FILE, asdict(ELSEWHERE))
    prepare_run(load_config([job / "offline.yaml"]), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.yaml", "layout.json"]
