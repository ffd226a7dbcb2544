"""An actor's side of a call: answers that wait for the driver, which takes them by long poll. Torch-free.

An actor whose driver has given no sign of life for a while ends itself: a machine that is only cut off must not go on
with work that another one has taken over.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from flows.workers.messages import WireMessage, encode

# Answers that wait; a driver that is slow to take them slows the work.
WAITING = 1024
# Answers of one poll.
MOST = 256
_WATCH_SECONDS = 1.0


class Mailbox:
    """Answers to the newest call, by its number."""

    def __init__(self, silence: float, end: Callable[[], None]) -> None:
        """``silence``: seconds after which the driver is gone; then ``end`` is called, and this process ends."""
        self._silence, self._end = silence, end
        self.number = 0
        self._lines: queue.Queue[bytes] = queue.Queue(WAITING)
        self._seen = time.monotonic()
        threading.Thread(target=self._watch, name="driver-watch", daemon=True).start()

    def open(self, number: int) -> None:
        """Begin call ``number``: what was not taken of the one before is dropped."""
        self._seen = time.monotonic()
        self.number, self._lines = number, queue.Queue(WAITING)

    def put(self, number: int, message: WireMessage) -> None:
        """Add an answer to call ``number``; wait while ``WAITING`` others do. Dropped if another call has begun."""
        line, lines = encode(message), self._lines
        while number == self.number:
            try:
                lines.put(line, timeout=_WATCH_SECONDS)
            except queue.Full:
                continue
            return

    def take(self, number: int, seconds: float) -> list[bytes]:
        """Return the next answers to call ``number``; none if none came within ``seconds``."""
        self.beat()
        if number != self.number:
            return []
        lines, found = self._lines, list[bytes]()
        with suppress(queue.Empty):
            found.append(lines.get(timeout=seconds))
            while len(found) < MOST:
                found.append(lines.get_nowait())
        self.beat()
        return found

    def beat(self) -> None:
        """Note a sign of life of the driver."""
        self._seen = time.monotonic()

    def _watch(self) -> None:
        # Looks are counted, not time: a machine that stood still says nothing about the driver.
        silent = 0.0
        while silent < self._silence:
            seen = self._seen
            time.sleep(_WATCH_SECONDS)
            silent = 0.0 if self._seen != seen else silent + _WATCH_SECONDS
        self._end()
        os._exit(1)
