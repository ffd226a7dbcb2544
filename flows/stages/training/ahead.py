"""Reference passes over pairs of labels that are sealed, while later shards are sampled.

A shard is kept under the content that it is of, and the reference stage takes it only for the same examples, weights
and precision: so a kill, labels that are made again or other settings cost at most its computation.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from flows.stages.context import Context
from flows.stages.training.examples import example_of
from flows.stages.training.reference import SHARD, ReferenceScores, ahead_of, passes_of
from pipeline.errors import RunError
from pipeline.storage.rows import read_group_file
from pipeline.storage.seals import Seals
from pipeline.training.batches.examples import Example
from pipeline.training.pairs.make import from_groups

logger = logging.getLogger(__name__)


class PassAhead:
    """The first pass of a round's reference stage, as far as its pairs are known; loads the model at its first shard.

    Shards are as the stage makes them, since neither pairs nor their order depend on later labels.
    """

    def __init__(self, context: Context, round_: int, on_progress: Callable[[], None]) -> None:
        """``on_progress`` is called between batches."""
        self._context, self._round = context, round_
        quiet = replace(context, report=lambda *_: on_progress())
        self._scores = ReferenceScores(quiet, round_, (), passes_of(context, round_)[0], (0, 1))
        self._folder = ahead_of(context, round_)
        self._waiting: deque[Example] = deque()
        self._failed = False

    def __enter__(self) -> "PassAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scores.__exit__(kind, error, trace)

    def labelled(self, file: Path) -> None:
        """Take the next shard of labels, and make the shards of the pass that it completes."""
        if self._failed:
            return
        rows = from_groups(self._context.config, self._round, read_group_file(file), Counter())
        self._waiting += (example_of(row, self._context.config.loss) for row in rows)
        while len(self._waiting) >= SHARD and not self._failed:
            self._make([self._waiting.popleft() for _ in range(SHARD)])

    def _make(self, examples: list[Example]) -> None:
        self._folder.mkdir(exist_ok=True)
        seals, file = Seals(self._folder), self._folder / f"{self._scores.key(examples)}.parquet"
        if seals.hold(file.name):
            return
        try:
            self._scores.write(file, examples, seals)
        except RunError as error:
            # Labels are not worse for it; the stage itself tells of it, and of the row.
            logger.warning("reference pass beside the labels: %s; the reference stage makes it again", error)
            self._failed = True
