"""The actor that keeps one child process on its machine: it hands requests on, and keeps answers until they are taken.

The child is the same process as on one machine, with the same service. The actor itself computes nothing, so that it
answers at once while the child is busy. Torch-free.
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.workers.child import Child
from flows.workers.machines.cluster.home import Home, mismatch, ours, settle
from flows.workers.machines.cluster.mailbox import Mailbox
from flows.workers.messages import Done, Failed, Further, Reply, Request, Service
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import redacted


class ChildHost:
    """Keeps a child, and ends with it if the driver gives no sign of life."""

    def __init__(self, home: Home, silence: float) -> None:
        """``home``: what this machine must have; ``silence``: see ``Mailbox``."""
        self._home = home
        self._child: Child[Any] | None = None
        self._box = Mailbox(silence, self.end)
        settle(home)

    def facts(self) -> dict[str, Any]:
        """Return this machine's name and the cards that the actor may use."""
        return {"machine": socket.gethostname(), "pid": os.getpid(), "cards": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def begin(
        self,
        number: int,
        service: Service[Any],
        init: Request,
        log: str,
        start_timeout: float,
        env: Mapping[str, str | None],
    ) -> None:
        """Start the child, as call ``number``: answered by ``Done``."""

        def work() -> Reply:
            lacking = mismatch(self._home)
            if lacking is not None:
                raise UserError(f"cluster: {lacking}")
            self._child = Child(service, init, Path(log), start_timeout, {**ours(os.environ), **env})
            return Done()

        self._do(number, work)

    def ask(self, number: int, request: Request, reply: type[Reply], timeout: float | None) -> None:
        """Send ``request`` to the child, as call ``number``; see ``Child.stream``."""

        def work() -> Reply:
            assert self._child is not None, "asked before it began"
            messages = self._child.stream(request, reply, timeout)
            while True:
                try:
                    self._box.put(number, next(messages))
                except StopIteration as end:
                    last: Reply = end.value
                    return last

        self._do(number, work)

    def send(self, number: int, further: Further) -> None:
        """Send ``further`` to the child, which answers call ``number``."""
        if self._child is not None and number == self._box.number:
            self._child.send(further)

    def take(self, number: int, seconds: float) -> tuple[list[bytes], bool]:
        """Return answers to call ``number``, and whether the child runs; see ``Mailbox.take``."""
        return self._box.take(number, seconds), self.alive()

    def alive(self) -> bool:
        """Return whether the child runs."""
        self._box.beat()
        return self._child is not None and self._child.alive

    def beat(self) -> None:
        """Note a sign of life of the driver."""
        self._box.beat()

    def pid(self) -> int | None:
        """Return the process id of the child."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """Let the child end by itself, within seconds."""
        if self._child is not None:
            self._child.close()

    def end(self) -> None:
        """End the child at once."""
        if self._child is not None:
            self._child.kill()

    def _do(self, number: int, work: Callable[[], Reply]) -> None:
        self._box.open(number)
        threading.Thread(target=put_answer, args=(self._box, number, work), name=f"call-{number}", daemon=True).start()


def put_answer(box: Mailbox, number: int, work: Callable[[], Reply]) -> None:
    """Put the result of ``work`` into ``box``, or how it failed."""
    result: Reply
    try:
        result = work()
    except (UserError, RunError, Paused) as error:
        result = failure(error)
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure is shown to the user
        result = Failed(redacted(f"{type(error).__name__}: {error}"), "run")
    box.put(number, result)


def failure(error: Exception) -> Failed:
    """Return the message for an error of a service."""
    kind = "user" if isinstance(error, UserError) else "pause" if isinstance(error, Paused) else "run"
    return Failed(redacted(error), kind)  # type: ignore[arg-type]
