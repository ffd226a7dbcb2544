"""Finished shards of a stage that is still being made, as its maker tells of them. Torch-free."""

import time
from collections.abc import Callable, Iterator

from flows.workers.messages import NextShard
from pipeline.errors import RunError

_LOOK_SECONDS = 0.1


class ShardFeed:
    """The shards in order; whoever reads waits for the next one."""

    def __init__(self, receive: Callable[[], NextShard | None], waiting: Callable[[], None]) -> None:
        """Take nothing yet.

        Args:
            receive: returns what has come, or None if there is nothing yet.
            waiting: called again and again in the meantime, so that the maker sees that someone waits.
        """
        self._receive = receive
        self._waiting = waiting

    def __iter__(self) -> Iterator[NextShard]:
        """Yield each shard. Raises ``RunError`` if there will be no more, although the stage is not complete."""
        while (shard := self._next()).name is not None:
            yield shard
        if not shard.whole:
            raise RunError("sampling ended before all was sampled; the labels of finished shards are kept")

    def _next(self) -> NextShard:
        while (found := self._receive()) is None:
            self._waiting()
            time.sleep(_LOOK_SECONDS)
        return found
