"""Restart of a server that dies while a block runs."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Server = subprocess.Popen[bytes]
# Between two checks, and so between two starts of a server that dies at once.
_LOOK_SECONDS = 1.0


@contextmanager
def kept_alive(server: Server, start: Callable[[], Server], stop: Callable[[Server], None]) -> Iterator[None]:
    """Watch ``server``: if it dies, ``start`` makes another at the same address; ``stop`` ends the last one.

    ``stop`` also clears away processes left behind by a server that died.
    """
    current, over = [server], threading.Event()

    def look_after() -> None:
        while not over.wait(_LOOK_SECONDS):
            if current[0].poll() is not None:
                stop(current[0])
                current[0] = start()

    thread = threading.Thread(target=look_after, name="kept-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        stop(current[0])
