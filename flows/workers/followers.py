"""The processes of training beside the first: it starts them, tells them what to train, and none outlives it."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, RunStage, StageProgress, TrainerInit
from pipeline.errors import RunError, UserError
from pipeline.safe_text import key_variables

# For the first process to notice by itself that another has failed, and to write down what is worth keeping.
GRACE_SECONDS = 30.0
# From a lost connection to the news of who died.
NEWS_SECONDS = 5.0


class Followers:
    """Children of this process, ranks 1 to ``count``; each has a log file of its own.

    They lead process groups of their own and end when this process does, whatever ended it.
    """

    def __init__(self, count: int, init: TrainerInit, log: Path, start_timeout: float) -> None:
        """Start them all at once.

        Raises:
            RunError: one did not answer within ``start_timeout`` seconds.
        """
        self._pool = ThreadPoolExecutor(count)

        def start(rank: int) -> Child[StageProgress]:
            own = log.with_name(f"{log.stem}_{rank}{log.suffix}")
            threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share_of_cores(count + 1)))}
            # Followers train, and ask nobody.
            env = {**threads, **dict.fromkeys(key_variables(init.config))}
            return Child(TRAINER, msgspec.structs.replace(init, rank=rank), own, start_timeout, env)

        starting = [self._pool.submit(start, rank) for rank in range(1, count + 1)]
        try:
            self._children = [future.result() for future in starting]
        except BaseException:
            for future in starting:
                if future.exception() is None:
                    future.result().kill()
            raise

    def beside(self, request: RunStage, work: Callable[[], None]) -> None:
        """Do ``work``, this process's part of ``request``, while the others do theirs.

        A collective operation waits for the one that failed, so a follower that fails is ended: over gloo ``work``
        then fails too. Where it does not within ``GRACE_SECONDS``, this process ends, with the follower's words last.

        Raises:
            UserError, RunError: of ``work``, or else of the follower that failed first.
        """
        failed: list[Exception] = []
        over, told = threading.Event(), threading.Event()

        def follow(rank: int, child: Child[StageProgress]) -> None:
            try:
                child.call(request, Done, None)
            except (UserError, RunError) as error:
                failed.append(type(error)(f"process {rank} of training: {error}"))
                told.set()
                child.kill()
                if not over.wait(GRACE_SECONDS):
                    print(failed[0], file=sys.stderr, flush=True)
                    os._exit(1)

        calls: list[Future[None]] = [self._pool.submit(follow, 1 + i, c) for i, c in enumerate(self._children)]
        try:
            work()
        except (UserError, RunError):
            raise
        except Exception as error:
            # What is seen here is most often no more than a lost connection, and sooner than the reason for it.
            told.wait(NEWS_SECONDS)
            raise (failed[0] if failed else error) from error
        finally:
            over.set()
        for call in calls:
            call.result()
        if failed:
            raise failed[0]

    def end(self) -> None:
        """End them at once: they hold nothing that is not written."""
        for child in self._children:
            child.kill()


def share_of_cores(processes: int) -> int:
    """Threads for each of ``processes`` that compute on this machine's CPU."""
    return max(1, (os.cpu_count() or 1) // processes)
