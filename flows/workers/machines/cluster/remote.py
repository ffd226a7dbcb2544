"""The driver's side of an actor: the interface of ``Child`` to a service on another machine.

A lost actor is dropped: it is not restarted, no call to it is repeated, and its late answers are ignored. Who asked
starts another.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

from flows.workers.child import reply_of
from flows.workers.logs.child_output import last_words
from flows.workers.messages import RAISED, Done, Failed, Further, P, R, Request, Service, decode, name_of
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import redacted
from pipeline.types.counts import number_of

# Seconds that an actor keeps a poll open.
TAKE_SECONDS = 2.0
_CLOSE_SECONDS = 15.0


class LostError(RunError):
    """An actor does not answer: it died, its machine is gone, or it cannot be reached."""


class RemoteChild(Generic[P]):
    """A child process on another machine, behind an actor; ready for calls once ``begin`` has returned."""

    def __init__(
        self,
        service: Service[P],
        host: Any,
        log: Path,
        silence: float,
        release: Callable[[], None],
        *,
        limited: bool = False,
    ) -> None:
        """See ``Child``.

        Args:
            service: the type of its progress messages.
            host: the actor's handle.
            log: the file for its output, on storage that all machines share.
            silence: seconds without a sign of life after which it is lost.
            release: gives its place back.
            limited: whether this side ends a call that is silent; otherwise the actor does, as ``Child`` does, since
                only it sees whether its child is at work.
        """
        self.log = log
        self._name, self._progress = service.entry, service.progress
        self._host, self._silence, self._release = host, silence, release
        self._lock, self._number = threading.Lock(), 0
        self._log_start = log.stat().st_size if log.exists() else 0
        self._alive, self._gone, self._limited = True, False, limited
        self._done = threading.Event()
        threading.Thread(target=self._beat, name="actor-beat", daemon=True).start()

    def begin(self, service: Service[P], init: Request, start_timeout: float, env: dict[str, str | None]) -> None:
        """Start the child on its machine. Raises as ``Child`` does, and ``LostError``."""
        try:
            with self._lock:
                sent = lambda number: self._host.begin.remote(  # noqa: E731 - the call differs, the wait does not
                    number, service, init, str(self.log), start_timeout, env
                )
                for _ in self._answers("init", sent, Done, start_timeout):
                    pass
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """True if the actor answers and its child runs."""
        if not self._gone:
            try:
                self._alive = bool(self._wait(self._host.alive.remote(), self._silence))
            except LostError:
                self.kill()
        return self._alive and not self._gone

    @property
    def pid(self) -> int | None:
        """None: its process is none of this machine's."""
        return None

    def call(
        self, request: Request, reply: type[R], timeout: float | None, on_progress: Callable[[P], None] | None = None
    ) -> R:
        """See ``Child.call``; a lost actor raises ``LostError``."""
        return reply_of(self.stream(request, reply, timeout), on_progress)

    def stream(self, request: Request, reply: type[R], timeout: float | None) -> Generator[P, None, R]:
        """See ``Child.stream``; a lost actor raises ``LostError``."""
        with self._lock:
            try:
                sent = lambda number: self._host.ask.remote(number, request, reply, timeout)  # noqa: E731 - see above
                return (yield from self._answers(name_of(request), sent, reply, timeout))
            except (UserError, Paused):
                raise
            except RunError:
                if not self._alive:
                    self.kill()
                raise
            except BaseException:
                self.kill()
                raise

    def send(self, further: Further) -> None:
        """See ``Child.send``; a lost actor is noticed where its answers are awaited."""
        with contextlib.suppress(LostError):
            self._wait(self._host.send.remote(self._number, further), self._silence)

    def close(self) -> None:
        """Let the child end by itself; kill it after some seconds."""
        if not self._gone:
            with contextlib.suppress(LostError):
                self._wait(self._host.close.remote(), _CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the child and its actor at once, and give their place back."""
        if self._gone:
            return
        self._gone, self._alive = True, False
        self._done.set()
        # The child's own end first: what it holds of a card is free before the card is given to another actor.
        with contextlib.suppress(LostError):
            self._wait(self._host.end.remote(), _CLOSE_SECONDS)
        drop(self._host)
        self._release()

    def __enter__(self) -> "RemoteChild[P]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _answers(
        self, name: str, send: Callable[[int], Any], reply: type[R], timeout: float | None
    ) -> Generator[P, None, R]:
        """Send a call and yield its progress; its number tells its answers from those of earlier calls."""
        self._number += 1
        kinds = (self._progress, reply, Failed)
        try:
            # The first call waits until the actor's process has started.
            patience = timeout if self._number == 1 and timeout is not None else self._silence
            self._wait(send(self._number), max(patience, self._silence))
            last = time.monotonic()
            while True:
                lines, self._alive = self._take()
                for line in lines:
                    message = decode(line, kinds)
                    if isinstance(message, self._progress):
                        yield message
                    elif isinstance(message, Failed):
                        raise RAISED[message.kind](message.text)
                    else:
                        assert isinstance(message, reply)
                        return message
                last = time.monotonic() if lines else last
                if self._limited and timeout is not None and time.monotonic() - last > 2 * timeout:
                    raise LostError(f"was silent for {number_of(timeout, 'second')} and was ended")
        except LostError as error:
            self.kill()
            raise LostError(f"{self._name}: {name}: {error}{last_words(self.log, self._log_start)}") from error
        except ValueError as error:
            self.kill()
            raise RunError(f"{self._name}: malformed answer to {name}: {error}") from error

    def _take(self) -> tuple[list[bytes], bool]:
        lines, alive = self._wait(self._host.take.remote(self._number, TAKE_SECONDS), TAKE_SECONDS + self._silence)
        return lines, alive

    def _wait(self, answer: Any, seconds: float) -> Any:
        """Return what the actor answers. Raises ``LostError``."""
        return awaited(answer, seconds)

    def _beat(self) -> None:
        while not self._done.wait(max(1.0, self._silence / 6)):
            with contextlib.suppress(Exception):
                self._host.beat.remote()


def awaited(answer: Any, seconds: float) -> Any:
    """Return what an actor answers. Raises ``LostError``."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(answer, timeout=seconds)
    except GetTimeoutError:
        raise LostError(f"its actor gave no sign of life for {number_of(seconds, 'second')}") from None
    except RayError as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        said = redacted(f"{type(error).__name__}: {text}"[:300])
        raise LostError(f"its actor is lost ({said})") from error


def drop(host: Any) -> None:
    """End an actor, if it is still there."""
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError, ValueError):
        ray.kill(host, no_restart=True)
