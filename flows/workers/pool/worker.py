"""What a pool sees of a worker: a service in a process that answers calls, wherever that process is. Torch-free.

``flows.workers.child.Child`` is one on this machine; an actor on another machine can stand in its place.
"""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from flows.workers.messages import Further, P, Progress, R, Request, Service
from flows.workers.pool.seating import Seat
from pipeline.errors import RunError

P_co = TypeVar("P_co", bound=Progress, covariant=True)


class NoPlaceError(RunError):
    """No machine has a place for another worker: others do its work."""


class Worker(Protocol[P_co]):
    """A service that has started. All waits have a deadline; after an error other than ``UserError`` it is gone."""

    @property
    def alive(self) -> bool:
        """True if it can be called."""

    @property
    def pid(self) -> int | None:
        """The process id on this machine; None if it runs on another."""

    def call(self, request: Request, reply: type[R], timeout: float | None) -> R:
        """Send ``request`` and return the reply. See ``Child.call``."""

    def stream(self, request: Request, reply: type[R], timeout: float | None) -> Generator[P_co, None, R]:
        """Like ``call``, but yield the progress messages; abandoning the iteration ends the worker."""

    def send(self, further: Further) -> None:
        """Send more to the call whose ``stream`` is being read."""

    def close(self) -> None:
        """Let it end by itself, for a few seconds."""

    def kill(self) -> None:
        """End it at once, with all that it started."""


class StartWorker(Protocol):
    """Starts a worker in its seat: here a child process with its cards, elsewhere an actor that asks for them."""

    def __call__(
        self,
        service: Service[P],
        init: Request,
        log: Path,
        start_timeout: float,
        seat: Seat,
        env: Mapping[str, str | None],
    ) -> Worker[P]:
        """Start ``service`` and send it ``init``; ``env``: variables to set, or to remove (None).

        Raises:
            NoPlaceError: no machine has a place for it.
            RunError: it did not answer within ``start_timeout`` seconds.
            UserError: it found a mistake in ``init``.
        """
