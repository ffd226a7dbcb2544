"""A server that is started again when it dies, for as long as a block runs."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Server = subprocess.Popen[bytes]
# Between two looks, and so between two starts of a server that dies at once.
_LOOK_SECONDS = 1.0


@contextmanager
def kept_alive(server: Server, start: Callable[[], Server], stop: Callable[[Server], None]) -> Iterator[None]:
    """Look after ``server``: ``start`` makes another, at the same address, when it is gone; ``stop`` ends what runs.

    ``stop`` is also asked to clear away what a server that died has left of its own processes.
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
