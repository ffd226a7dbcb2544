"""Rows that a run trains on, of all rows of its data, and why not the others."""

from collections import Counter
from collections.abc import Sequence

from pipeline.config import RunConfig
from pipeline.config.data.mixture import part_of
from pipeline.data.faults import LONG_PROMPT, Fault
from pipeline.data.reading import PromptRow, SourceRow
from pipeline.data.run_data import drops_tie
from pipeline.data.split import Split
from pipeline.types import TextGroup, TextPreference

# Causes that cost a later stage the row, besides those that ``limits`` drops; of groups, only the first.
_LOST_WITH_PROMPT = frozenset(("refused",))
_LOST = _LOST_WITH_PROMPT | {"empty", "identical", "identical_when_cut"}


class RowAccount:
    """Counts the rows of the source that rounds train on: the pairs offline, else the prompts."""

    def __init__(self, config: RunConfig, split: Split | None) -> None:
        """``split``: None if the data could not be split, and nothing is counted."""
        self._config = config
        self._split = split
        self._source = "pairs" if config.mode == "offline" else "prompts"
        self._rows = 0
        self._lost: Counter[str] = Counter()

    def add(self, source: str, row: SourceRow[PromptRow] | SourceRow[TextPreference], faults: Sequence[Fault]) -> None:
        """Count one row with its faults."""
        if source == self._source and self._split is not None:
            self._rows += 1
            why = row.cause if row.value is None else self._why_not(row.value, row.member, faults, self._split)
            self._lost.update([why] if why else [])

    def _why_not(
        self, value: PromptRow | TextPreference, member: int | None, faults: Sequence[Fault], split: Split
    ) -> str | None:
        config, causes = self._config, [cause for cause, _ in faults]
        dropped = next((cause for cause in causes if cause in config.limits.dropped), None)
        if dropped is not None:
            return dropped
        if split.copies(value.prompt):
            return "leak" if config.held_out.is_given else "held out"
        if not isinstance(value, PromptRow) and drops_tie(value, part_of(config.pairs, member)):
            return "tie"
        if any(cause == "long_for_policy" and said.startswith(LONG_PROMPT) for cause, said in faults):
            return "long_for_policy"
        if isinstance(value, PromptRow) and "duplicate_prompt" in causes:
            return "duplicate_prompt"
        lost = _LOST_WITH_PROMPT if isinstance(value, PromptRow | TextGroup) else _LOST
        return next((cause for cause in causes if cause in lost), None)

    def lines(self) -> list[str]:
        """Return one line: how many rows are trained on, of how many, and why not the others; none without rows."""
        if not self._rows:
            return []
        trained = self._rows - self._lost.total()
        why = ", ".join(f"{count:,} {cause}" for cause, count in self._lost.most_common())
        line = f"{self._source}: trains on {trained:,} of {self._rows:,} rows" + (f"; not on {why}" if why else "")
        much = self._lost["held out"] > trained
        return [line, *(["  held_out.share=0.1 holds out fewer prompts"] if much else [])]
