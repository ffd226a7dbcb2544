"""A run's data, read and split, for the data stage to write. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import ImageData, PairData, RunConfig, UserData
from pipeline.config.data.mixture import part_of
from pipeline.data.dropping import Dropping
from pipeline.data.faults import Tokens
from pipeline.data.reading import values
from pipeline.data.sources import held_out_source, prompt_source
from pipeline.data.split import Split, split_held_out
from pipeline.data.spool.distinct import DistinctPrompts
from pipeline.data.spool.kept_rows import RunRows, Source
from pipeline.errors import UserError
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText

HELD_OUT_PAIRS = "held_out_pairs"


PREFERENCE_TABLES: dict[type[TextPreference], str] = {TextPair: "pairs", TextGroup: "groups", UnpairedText: "unpaired"}


Text = tuple[Prompt, str]


@dataclass(frozen=True)
class RunData:
    """A run's data: its rows and its distinct prompts on disk, and which of them are held out or left out."""

    config: RunConfig
    rows: RunRows
    distinct: DistinctPrompts
    split: Split
    dropping: Dropping

    def prompts(self) -> Iterator[Prompt]:
        """The distinct prompts that rounds may train on, in the order of the data."""
        return (prompt for prompt in self.distinct if not self.split.copies(prompt))

    def texts(self) -> Iterator[Text]:
        """Yield prompts and reference responses for the warm start; a prompt may have several."""
        if self.config.warm_start is None or self.config.prompts is None:
            return
        for row in values(self.dropping.rows("prompts", self.rows.prompts("prompts"))):
            if not self.split.copies(row.prompt):
                yield from ((row.prompt, text) for text in row.texts)

    def preferences(self) -> Iterator[tuple[str, TextPreference]]:
        """Yield (table, preference) for rows that rounds may train on and for pairs with held-out prompts."""
        config, split = self.config, self.split
        given = None if config.prompts is not None else held_out_source(config)
        for row in self._preferences("pairs", config.pairs):
            if not split.copies(row.prompt):
                yield PREFERENCE_TABLES[type(row)], row
            elif given is None and (pair := self._held_out(row)):
                yield HELD_OUT_PAIRS, pair
        yield from (
            (HELD_OUT_PAIRS, pair) for row in self._preferences("held_out", given) if (pair := self._held_out(row))
        )

    def _preferences(self, name: Source, source: PairData | None) -> Iterator[TextPreference]:
        if source is not None:
            for row in self.dropping.rows(name, self.rows.preferences(name)):
                if row.value is not None and not drops_tie(row.value, part_of(source, row.member)):
                    yield row.value

    def _held_out(self, row: TextPreference) -> TextPair | None:
        return _comparison(row) if self.split.holds_out(row.prompt) else None


def open_data(config: RunConfig, tokens: Tokens | None = None, rows: RunRows | None = None) -> RunData:
    """Read the prompts and split them; write nothing. Raises ``UserError`` if that is not possible.

    ``tokens``: needed if ``limits`` drops a cause that is found in tokens. ``rows``: of the config, if some were read.
    """
    rows = RunRows(config) if rows is None else rows
    dropping, given = Dropping(config, rows, tokens), held_out_source(config)
    if given is not None:
        split = _given_split(config, given, rows, dropping)
        dropping.leaks = split
    distinct, source = DistinctPrompts(config.held_out.by == "source"), prompt_source(config)
    name: Source = "pairs" if config.prompts is None else "prompts"
    for row in values(dropping.rows(name, rows.prompts(name))):
        distinct.add(row.prompt)
    if not len(distinct):
        raise UserError(f"{source.where}: holds no rows{dropping.said}")
    if given is None:
        split = split_held_out(distinct, config.held_out, distinct.together())
    return RunData(config, rows, distinct, split, dropping)


def _given_split(config: RunConfig, given: UserData | ImageData, rows: RunRows, dropping: Dropping) -> Split:
    """Return the split that holds out the first prompts of ``given``."""
    held_out: dict[str, Prompt] = {}
    for row in values(dropping.rows("held_out", rows.prompts("held_out"))):
        held_out.setdefault(row.prompt.id, row.prompt)
        if len(held_out) == config.held_out.prompts:
            break
    if not held_out:
        raise UserError(f"held_out: {given.where}: holds no rows{dropping.said}")
    return Split.of([*held_out.values()])


def drops_tie(row: TextPreference, source: UserData | None) -> bool:
    """Return whether the row is a tie where votes or signed numbers make certain labels."""
    if source is None:
        return False
    if source.columns.has_votes:
        certain = source.votes.label == "majority"
    else:
        certain = source.rewards_are == "signed" and source.signed.strength != "soft_label"
    return certain and isinstance(row, TextPair) and row.soft_label == 0.5


def _comparison(row: TextPreference) -> TextPair | None:
    """Return a pair as it is, or a group's best and worst responses; None if there is nothing to compare."""
    match row:
        case TextPair():
            return row
        case TextGroup():
            scored = [(score, turn) for score, turn in zip(row.rewards, row.answers, strict=True) if score is not None]
            best, worst = (choose(scored, key=lambda of: of[0]) for choose in (max, min))
            if best[0] > worst[0]:
                return _pair(row.prompt, best, worst)
    return None


def _pair(prompt: Prompt, best: tuple[float, Message], worst: tuple[float, Message]) -> TextPair:
    return TextPair(
        prompt,
        best[1].content,
        worst[1].content,
        best[0],
        worst[0],
        chosen_extra=best[1].extra,
        rejected_extra=worst[1].extra,
    )
