"""Word of finished shards, from the stage that makes them to the one that reads them. Torch-free.

Only names are kept here: the shards are files, so neither side holds more than the one that it works on.
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue

from flows.workers.messages import Further, NextShard
from pipeline.errors import RunError


class ShardQueue:
    """One maker puts; one reader takes, in another thread."""

    def __init__(self, beside: str) -> None:
        """``beside``: the stage that runs in the other thread, if its error is to be told before all is over."""
        self._waiting: SimpleQueue[NextShard] = SimpleQueue()
        self._stopped = False
        self.beside = beside
        self.over = False

    def put(self, shard: NextShard) -> None:
        """Tell of a finished shard; they come in order. Raises ``RunError`` if no further one is wanted."""
        self._waiting.put(shard)
        if self._stopped:
            raise RunError("ended with the stage beside it; finished shards are kept")

    def stop(self) -> None:
        """Let the maker end with the shard that it works on."""
        self._stopped = self.over = True

    def end(self, *, whole: bool) -> None:
        """Say that no more come; ``whole``: the stage is complete."""
        self.over = True
        self._waiting.put(NextShard(whole=whole))

    def forward(self, send: Callable[[Further], None]) -> None:
        """Send everything that waits."""
        while True:
            try:
                send(self._waiting.get_nowait())
            except Empty:
                return
