"""Training processes other than the first: it starts them and sends them stages, and they end with it."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, JoinPasses, RunStage, StageProgress, TrainerInit
from pipeline.errors import RunError, UserError
from pipeline.safe_text import key_variables
from pipeline.storage.cores import usable_cores

# Time for the first process to notice that another has failed, and to write down what is worth keeping.
GRACE_SECONDS = 30.0
# Time from a lost connection to the report of which process died.
NEWS_SECONDS = 5.0


class Followers:
    """Children of this process, ranks 1 to ``count``; each has its own log file.

    They lead their own process groups and end with this process, however it ends.
    """

    def __init__(self, count: int, init: TrainerInit, log: Path, start_timeout: float) -> None:
        """Start them all at once.

        Raises:
            RunError: one did not answer within ``start_timeout`` seconds.
        """
        # One more for those of other machines.
        self._pool = ThreadPoolExecutor(count + 1)
        self._children = start_processes(range(1, count + 1), init, log, start_timeout, share_of_cores(count + 1))

    @contextmanager
    def beside(
        self, request: RunStage | JoinPasses, elsewhere: Callable[[], Exception | None] | None = None
    ) -> Iterator[None]:
        """Let the others do their part of ``request`` while this process does its own inside the block.

        A collective operation waits for a failed process, so a follower that fails is ended: with gloo the block then
        fails too. If it does not within ``GRACE_SECONDS``, this process ends, and prints the follower's error last.

        Args:
            request: what the others do.
            elsewhere: asked every second for what has ended a process on another machine.

        Raises:
            UserError, RunError: from the block, else from the follower that failed first.
        """
        failed: list[Exception] = []
        over, told = threading.Event(), threading.Event()

        def tell(error: Exception, child: Child[StageProgress] | None = None) -> None:
            failed.append(error)
            told.set()
            if child is not None:
                child.kill()
            if not over.wait(GRACE_SECONDS):
                print(failed[0], file=sys.stderr, flush=True)
                os._exit(1)

        def follow(rank: int, child: Child[StageProgress]) -> None:
            try:
                child.call(request, Done, None)
            except (UserError, RunError) as error:
                tell(type(error)(f"process {rank} of training: {error}"), child)

        def watch(trouble: Callable[[], Exception | None]) -> None:
            while not over.wait(1.0):
                found = trouble()
                if found is not None:
                    tell(found)
                    return

        calls: list[Future[None]] = [self._pool.submit(follow, 1 + i, c) for i, c in enumerate(self._children)]
        if elsewhere is not None:
            calls.append(self._pool.submit(watch, elsewhere))
        try:
            yield
        except (UserError, RunError):
            raise
        except Exception as error:
            # This is usually only a lost connection, seen before the reason for it.
            told.wait(NEWS_SECONDS)
            raise (failed[0] if failed else error) from error
        finally:
            over.set()
        for call in calls:
            call.result()
        if failed:
            raise failed[0]

    def end(self) -> None:
        """End them at once: they hold no unwritten data."""
        for child in self._children:
            child.kill()


def start_processes(
    ranks: range,
    init: TrainerInit,
    log: Path,
    start_timeout: float,
    threads: int,
    further: Mapping[str, str | None] | None = None,
) -> list[Child[StageProgress]]:
    """Start training processes of this machine all at once; see ``Child``.

    Args:
        ranks: theirs, over all machines.
        init: what they are started with, but for the rank.
        log: beside which each has its own.
        start_timeout: seconds that one may take to answer.
        threads: of each on the CPU, unless the environment says.
        further: variables of their environment.

    Raises:
        RunError: one did not answer in time.
    """

    def start(rank: int) -> Child[StageProgress]:
        own = log.with_name(f"{log.stem}_{rank}{log.suffix}")
        # Followers only train, so they need no keys.
        env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **(further or {})}
        env |= dict.fromkeys(key_variables(init.config))
        return Child(TRAINER, msgspec.structs.replace(init, rank=rank), own, start_timeout, env)

    with ThreadPoolExecutor(max(1, len(ranks))) as pool:
        starting = [pool.submit(start, rank) for rank in ranks]
        try:
            return [future.result() for future in starting]
        except BaseException:
            for future in starting:
                if future.exception() is None:
                    future.result().kill()
            raise


def share_of_cores(processes: int) -> int:
    """Return the number of threads for each of ``processes`` on this machine's CPU."""
    return max(1, usable_cores() // processes)
