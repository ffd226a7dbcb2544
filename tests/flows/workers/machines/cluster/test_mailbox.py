"""Answers that wait for the driver: taken once, in order, and only those of the newest call."""

import subprocess
import sys
import threading

import pytest

from flows.workers.machines.cluster import mailbox
from flows.workers.machines.cluster.mailbox import Mailbox
from flows.workers.messages import StageProgress, decode


def progress(done: int) -> StageProgress:
    return StageProgress(done, 9, "")


def taken(box: Mailbox, number: int, seconds: float = 0.01) -> list[int]:
    return [decode(line, (StageProgress,)).done for line in box.take(number, seconds)]


@pytest.fixture
def box() -> Mailbox:
    return Mailbox(1e6, lambda: None)


def test_answers_are_taken_once_and_in_order(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MOST", 2)
    box.open(1)
    for done in range(5):
        box.put(1, progress(done))
    assert [taken(box, 1), taken(box, 1), taken(box, 1), taken(box, 1)] == [[0, 1], [2, 3], [4], []]


def test_answers_to_an_earlier_call_are_dropped(box: Mailbox) -> None:
    box.open(1)
    box.put(1, progress(1))
    box.open(2)
    box.put(1, progress(2))
    box.put(2, progress(3))
    assert taken(box, 1) == []
    assert taken(box, 2) == [3]


def test_work_that_the_driver_does_not_take_up_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "WAITING", 2)
    box = Mailbox(1e6, lambda: None)
    box.open(1)
    work = threading.Thread(target=lambda: [box.put(1, progress(done)) for done in range(5)])
    work.start()
    found: list[int] = []
    while len(found) < 5:
        assert box._lines.qsize() <= 2
        found += taken(box, 1, 10)
    work.join()
    assert found == [0, 1, 2, 3, 4]


def test_a_new_call_frees_work_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "WAITING", 1)
    box = Mailbox(1e6, lambda: None)
    box.open(1)
    work = threading.Thread(target=lambda: [box.put(1, progress(done)) for done in range(9)])
    work.start()
    box.open(2)
    work.join(60)
    assert not work.is_alive()
    assert taken(box, 2) == []


ALONE = """
from flows.workers.machines.cluster.mailbox import Mailbox
import threading
Mailbox(0.1, lambda: print("ended", flush=True))
threading.Event().wait()
"""


def test_a_process_whose_driver_is_silent_ends_its_work_and_itself() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=200, check=False)
    assert (done.stdout, done.returncode) == ("ended\n", 1)
