"""Word of finished shards, from the stage that makes them to the one that reads them. Torch-free.

Only names are kept here: the shards are files, so neither side holds more than the one that it works on.
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue

from flows.workers.messages import Further, NextShard


class ShardQueue:
    """One maker puts, one reader takes, in another thread."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[NextShard] = SimpleQueue()
        self.over = False

    def put(self, shard: NextShard) -> None:
        """Tell of a finished shard; they come in order."""
        self._waiting.put(shard)

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
