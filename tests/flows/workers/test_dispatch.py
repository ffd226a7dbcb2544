"""Tasks over several workers: answers in order, failures that cost none, and a bounded number of attempts."""

import threading
from collections.abc import Iterator

import pytest

from flows.workers.pool.dispatch import TaskQueue, Tray, answered
from flows.workers.pool.sampler_pool import blocks_of
from flows.workers.pool.worker import NoPlaceError
from pipeline.errors import RunError, UserError

Numbers = Tray[int, int]


class Squarer:
    """A worker that squares numbers; ``fails``: those at which it dies, as often as they are listed."""

    def __init__(self, name: str, fails: list[int], room: int = 3, gate: threading.Event | None = None) -> None:
        self.name = name
        self.fails = fails
        self.room = room
        self.gate = gate
        self.kills = 0
        self.seen: list[int] = []

    def answers(self, tray: Numbers) -> Iterator[int]:
        waiting = [*tray.take(self.room)]
        while waiting:
            number = waiting.pop(0)
            self.seen.append(number)
            if self.gate is not None:
                self.gate.wait(60)
            if number in self.fails:
                self.fails.remove(number)
                raise RunError(f"died at {number}")
            yield number**2
            waiting += tray.take(self.room)

    def kill(self) -> None:
        self.kills += 1


def squares(count: int, *desks: Squarer, size: int = 1, window: int = 1000, retries: int = 1) -> Iterator[int]:
    return answered(range(count), blocks_of(count, size), desks, window=window, retries=retries)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_answers_come_in_order_whatever_the_number_of_workers(workers: int, size: int) -> None:
    desks = [Squarer(f"w{number}", []) for number in range(workers)]
    assert list(squares(50, *desks, size=size)) == [n**2 for n in range(50)]
    assert sorted(n for desk in desks for n in desk.seen) == [*range(50)]


def test_no_tasks_need_no_worker() -> None:
    assert list(squares(0, Squarer("w", []))) == []


def test_what_a_failed_worker_owes_is_asked_again_as_a_whole_block() -> None:
    desk = Squarer("w", [5], room=8)
    assert list(squares(12, desk, size=4)) == [n**2 for n in range(12)]
    # It had answered 0 to 4 of what it had taken: the block of 5 is computed as a whole, as it would have been.
    assert desk.seen[:6] == [0, 1, 2, 3, 4, 5] and desk.seen[6:] == [*range(4, 12)]
    assert desk.kills == 1


def test_another_worker_takes_what_one_that_never_comes_back_has_left() -> None:
    gate = threading.Event()
    lost, other = Squarer("lost", [0], gate=gate), Squarer("other", [])
    answers = squares(20, lost, other)
    gate.set()
    assert list(answers) == [n**2 for n in range(20)]
    assert {*lost.seen, *other.seen} == {*range(20)}


def test_a_task_that_ends_every_worker_ends_the_call_after_its_attempts() -> None:
    desks = [Squarer(f"w{number}", [7] * 9) for number in range(3)]
    with pytest.raises(RunError, match=r"w\d: died at 7"):
        list(squares(20, *desks))
    assert sum(desk.seen.count(7) for desk in desks) == 2
    with pytest.raises(RunError, match=r"^died at 7"):
        list(squares(20, Squarer("alone", [7]), retries=0))


def test_a_worker_that_fails_again_and_again_without_an_answer_is_named() -> None:
    class Broken(Squarer):
        def answers(self, tray: Numbers) -> Iterator[int]:
            raise RunError("no card")
            yield

    gate = threading.Event()
    good = Squarer("good", [], gate=gate)
    with pytest.raises(RunError, match="broken: no card"):
        list(squares(20, Broken("broken", []), good))
    gate.set()
    assert good.kills == 1


def test_a_mistake_of_the_user_ends_the_call_at_once() -> None:
    class Refusing(Squarer):
        def answers(self, tray: Numbers) -> Iterator[int]:
            tray.take(1)
            raise UserError("a prompt fills the context")
            yield

    with pytest.raises(UserError, match="fills the context"):
        list(squares(20, Refusing("w", []), retries=5))


@pytest.mark.parametrize(("told", "said"), [(1, "answered more"), (-1, r"all but 1 of")])
def test_an_engine_that_answers_another_number_of_tasks_has_failed(told: int, said: str) -> None:
    class Wrong(Squarer):
        def answers(self, tray: Numbers) -> Iterator[int]:
            yield from [0] * (len(tray.take(4)) + told)

    with pytest.raises(RunError, match=said):
        list(squares(4, Wrong("w", []), size=4, retries=0))


def test_workers_take_no_more_than_a_window_beyond_the_oldest_missing_answer() -> None:
    queue: TaskQueue[int, int] = TaskQueue(range(100), blocks_of(100, 2), workers=2, window=10)
    one, other = Tray(queue), Tray(queue)
    assert one.take(2) == [0, 1]
    taken = []
    while more := other.take(other.unanswered + 2):
        taken += more
    assert taken == [*range(2, 10)]
    for number in taken:
        other.give(number)
    assert other.take(2) == []
    answers = queue.in_order()
    one.give(0)
    assert next(answers) == 0
    assert other.take(2) == [10, 11] and other.take(4) == []
    one.give(1)
    assert [next(answers) for _ in range(9)] == [1, *range(2, 10)] and other.take(4) == [12, 13]


def test_an_abandoned_call_ends_its_workers() -> None:
    desk = Squarer("w", [])
    answers = squares(1000, desk, window=10)
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]
    assert desk.kills >= 1
    assert len(desk.seen) < 1000


class Homeless(Squarer):
    """A worker that dies at once, and for which there is no place again."""

    def answers(self, tray: Numbers) -> Iterator[int]:
        if self.kills:
            raise NoPlaceError("no machine is left")
        yield from super().answers(tray)


def test_where_no_machine_is_left_for_a_worker_the_others_do_its_work() -> None:
    gone, other = Homeless("gone", [0, 1, 2]), Squarer("other", [])
    assert list(squares(20, gone, other)) == [n**2 for n in range(20)]
    with pytest.raises(NoPlaceError, match="no machine is left"):
        list(squares(20, Homeless("a", [*range(20)]), Homeless("b", [*range(20)]), retries=3))
