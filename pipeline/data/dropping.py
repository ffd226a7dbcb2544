"""Rows that are left out because of a cause that ``limits`` drops. Torch-free."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from pipeline.config import RunConfig
from pipeline.data.faults import Fault, FaultFinder, Tokens
from pipeline.data.reading import PromptRow, SourceRow
from pipeline.data.split import Split
from pipeline.data.spool.kept_rows import AnyRow, RunRows
from pipeline.types import TextPreference

T = TypeVar("T")


class Dropping:
    """Decides which rows of a run's sources are left out; each source is judged once, a byte a row.

    Attributes:
        counts: by source, the rows that are left out by their first such cause; known once a source was read.
        leaks: held-out prompts from a source of their own; to be set before other sources are read.
    """

    def __init__(self, config: RunConfig, rows: RunRows, tokens: Tokens | None = None) -> None:
        """``rows``: of the config. ``tokens``: needed if ``limits`` drops a cause that is found in tokens."""
        self.counts: dict[str, Counter[str]] = {}
        self.leaks: Split | None = None
        self._config = config
        self._rows = rows
        self._tokens = tokens
        self._causes = frozenset(config.limits.dropped)
        self._verdicts: dict[str, bytearray] = {}

    def rows(self, source: str, rows: Iterable[SourceRow[T]]) -> Iterator[SourceRow[T]]:
        """Yield the ``rows`` of ``source`` (prompts, pairs or held_out), all of them in order, that are kept."""
        if not self._causes:
            yield from rows
            return
        if source not in self._verdicts:
            self._verdicts[source] = self._judged(source)
        yield from (row for row, left_out in zip(rows, self._verdicts[source], strict=False) if not left_out)

    @property
    def said(self) -> str:
        """What was left out, for the end of a message; empty if nothing was."""
        lost = [f"{count} {cause}" for found in self.counts.values() for cause, count in found.items()]
        return f" that are kept; limits drops {', '.join(lost)}" if lost else ""

    def _judged(self, source: str) -> bytearray:
        finder = FaultFinder(self._tokens, None if source == "held_out" else self.leaks, self._causes)
        counts = self.counts.setdefault(source, Counter())
        verdicts = bytearray()
        for row in dict[str, Iterator[AnyRow]](self._rows.all())[source]:
            cause = cause_of(row, finder, self._causes, self._config)
            verdicts.append(cause is not None)
            if cause is not None:
                counts[cause] += 1
        return verdicts


def cause_of(row: AnyRow, finder: FaultFinder, causes: frozenset[str], config: RunConfig) -> str | None:
    """Return the first of ``causes`` that the row has, or None."""
    if row.value is None:
        return row.cause if row.cause in causes else None
    # All of them: the finder remembers each row.
    found = [*finder.faults(row.place, judged_part(row.value, config))]
    return next((cause for cause, _ in decisive(found, causes) if cause in causes), None)


def decisive(faults: Sequence[Fault], dropped: Collection[str]) -> Sequence[Fault]:
    """Return the faults that decide what becomes of a row: if any is ``dropped``, the first such one, else all."""
    return next(([fault] for fault in faults if fault[0] in dropped), faults)


def judged_part(value: PromptRow | TextPreference, config: RunConfig) -> PromptRow | TextPreference:
    """Return what a run reads of the row: without a warm start, no reference responses."""
    return PromptRow(value.prompt) if isinstance(value, PromptRow) and config.warm_start is None else value
