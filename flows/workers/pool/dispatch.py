"""Tasks handed out to several workers, whose answers come back in the order of the tasks. Torch-free.

Tasks of one block are computed together by one worker, because the last bits of a batch depend on what is in it: so
answers do not depend on the number of workers, nor on which of them fail.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

from flows.workers.pool.worker import NoPlaceError
from pipeline.errors import RunError

T = TypeVar("T")
A = TypeVar("A")
# Time for workers that were ended to notice it.
_JOIN_SECONDS = 10.0


@dataclass(slots=True, order=True)
class TaskBlock:
    """Tasks ``start`` to ``end`` - 1; ``failures``: of workers that left it as the first one without an answer."""

    start: int
    end: int
    failures: int = 0


class Desk(Protocol[T, A]):
    """A worker as ``answered`` sees it."""

    @property
    def name(self) -> str:
        """For messages."""

    def answers(self, tray: "Tray[T, A]") -> Iterator[A]:
        """Start the worker if none is there, take tasks from ``tray``, and yield an answer to each, in their order.

        Raises:
            RunError: the worker failed; what it has not answered goes to any worker.
            UserError: a task cannot be answered.
        """

    def kill(self) -> None:
        """End the worker at once; the next ``answers`` starts another."""


class TaskQueue(Generic[T, A]):
    """What workers take and give; all methods may be called from several threads."""

    def __init__(self, tasks: Sequence[T], blocks: Iterable[TaskBlock], workers: int, window: int) -> None:
        """Begin with all tasks waiting.

        Args:
            tasks: what is to be answered.
            blocks: in order, without gaps.
            workers: number of those who take.
            window: tasks from the oldest one without an answer that may be taken, so that few answers are kept.
        """
        self.tasks = tasks
        self.workers = workers
        self.waiting = len(tasks)
        self._fresh = iter(blocks)
        self._next = next(self._fresh, None)
        self._returned: list[TaskBlock] = []
        self._window = window
        self._found: dict[int, A] = {}
        self._given = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._over = not tasks

    def take(self) -> TaskBlock | None:
        """Return the first block that waits; None if none may be taken now."""
        with self._changed:
            if not self._may_take():
                return None
            if self._returned and (self._next is None or self._returned[0] < self._next):
                block = heappop(self._returned)
            else:
                assert self._next is not None
                block, self._next = self._next, next(self._fresh, None)
            self.waiting -= block.end - block.start
            return block

    def _may_take(self) -> bool:
        starts = [block.start for block in (self._next, *self._returned[:1]) if block is not None]
        return not self._over and bool(starts) and min(starts) < self._given + self._window

    def wait(self) -> bool:
        """Wait until a block can be taken; False once everything is answered or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._may_take())
            return not self._over

    def give(self, index: int, answer: A) -> None:
        """Keep the answer to task ``index`` until its turn; a second one, of a block that was repeated, is dropped."""
        with self._changed:
            if index >= self._given and not self._over:
                self._found.setdefault(index, answer)
                if index == self._given:
                    self._changed.notify_all()

    def give_back(self, blocks: Iterable[TaskBlock]) -> None:
        """Let others take ``blocks``."""
        with self._changed:
            for block in blocks:
                heappush(self._returned, block)
                self.waiting += block.end - block.start
            self._changed.notify_all()

    def retire(self) -> bool:
        """Go on with one worker less; False if there is no other."""
        with self._changed:
            self.workers -= 1
            return self.workers > 0

    def close(self, error: BaseException | None = None) -> None:
        """Hand out nothing any more; ``error``: raised to the reader."""
        with self._changed:
            self._over, self._error = True, self._error or error
            self._changed.notify_all()

    def in_order(self) -> Iterator[A]:
        """Yield all answers; close the queue after the last one."""
        for index in range(len(self.tasks)):
            with self._changed:
                self._changed.wait_for(lambda: self._over or index in self._found)  # noqa: B023
                if self._error is not None:
                    raise self._error
                answer = self._found.pop(index)
                self._given = index + 1
                self._over = self._given == len(self.tasks)
                self._changed.notify_all()
            yield answer


class Tray(Generic[T, A]):
    """What one worker has taken and not yet answered."""

    def __init__(self, queue: TaskQueue[T, A]) -> None:
        self._queue = queue
        self._blocks: deque[TaskBlock] = deque()
        # The next task to answer.
        self._place = 0
        self.unanswered = 0

    def take(self, most: int) -> Sequence[T]:
        """Take tasks, so that ``most`` are unanswered; at least a block if there is none.

        Several workers share what waits, so that all of them end at about the same time.
        """
        fair = -(-self._queue.waiting // (2 * self._queue.workers)) if self._queue.workers > 1 else most
        room = min(most - self.unanswered, fair)
        found: list[T] = []
        while (room > 0 or not self._blocks) and (block := self._queue.take()) is not None:
            if not self._blocks:
                self._place = block.start
            self._blocks.append(block)
            room -= block.end - block.start
            self.unanswered += block.end - block.start
            found += self._queue.tasks[block.start : block.end]
        return found

    def give(self, answer: A) -> None:
        """Give the answer to the oldest task.

        Raises:
            RunError: all have one.
        """
        if not self._blocks:
            raise RunError("it answered more than it was asked")
        self._queue.give(self._place, answer)
        self._place += 1
        self.unanswered -= 1
        if self._place == self._blocks[0].end:
            self._blocks.popleft()
            self._place = self._blocks[0].start if self._blocks else 0

    def give_back(self) -> int:
        """Let others take what is unanswered; return how often the first block of it was left so."""
        blocks, self._blocks = self._blocks, deque()
        if blocks:
            blocks[0].failures += 1
        self._queue.give_back(blocks)
        return blocks[0].failures if blocks else 0


def answered(
    tasks: Sequence[T], blocks: Iterable[TaskBlock], desks: Sequence[Desk[T, A]], *, window: int, retries: int
) -> Iterator[A]:
    """Yield the answer to each of ``tasks``, in order, while the workers go on.

    A worker that fails is replaced, unless no machine has a place for another. The answers that it owes are asked of
    whoever is free.

    Args:
        tasks: what is to be answered.
        blocks: which tasks are computed together; in order, without gaps.
        desks: the workers.
        window: see ``TaskQueue``; at least the largest block.
        retries: failures in a row, of one worker or at one block, that are followed by another attempt.

    Raises:
        RunError: there was one failure more.
        UserError: from a worker.
    """
    queue: TaskQueue[T, A] = TaskQueue(tasks, blocks, len(desks), window)
    threads = [
        threading.Thread(target=_work, args=(queue, desk, retries), name=desk.name, daemon=True) for desk in desks
    ]
    for thread in threads:
        thread.start()
    try:
        yield from queue.in_order()
    except BaseException:
        queue.close()
        for desk in desks:
            desk.kill()
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        raise
    for thread in threads:
        thread.join()


def _work(queue: TaskQueue[T, A], desk: Desk[T, A], retries: int) -> None:
    failures = 0
    while queue.wait():
        tray = Tray(queue)
        try:
            for answer in desk.answers(tray):
                tray.give(answer)
                failures = 0
            if tray.unanswered:
                raise RunError(f"it answered all but {tray.unanswered} of what it was asked")
        except NoPlaceError as error:
            tray.give_back()
            if queue.retire():
                return
            queue.close(error)
        except RunError as error:
            desk.kill()
            failures += 1
            if max(failures, tray.give_back()) > retries:
                queue.close(RunError(f"{desk.name}: {error}") if queue.workers > 1 else error)
        except BaseException as error:  # noqa: BLE001 - raised to the reader, in another thread
            desk.kill()
            queue.close(error)
