"""data: what the user brings, split by prompt and frozen in the run folder, one row after the other."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from flows.run_folder.growth import added_stages, sizes_of
from flows.stages.context import Context, Outcome
from pipeline.config import RunConfig, UserData
from pipeline.data.distinct import DistinctPrompts
from pipeline.data.reading import read_preferences, read_prompts, values
from pipeline.data.sources import held_out_source, prompt_source
from pipeline.data.split import Split, split_held_out
from pipeline.storage.rows import (
    PROMPTS,
    TEXT_GROUPS,
    TEXT_PAIRS,
    TEXTS,
    UNPAIRED_TEXTS,
    prompt_row,
    read_rows,
    row_prompt,
    row_text_group,
    row_text_pair,
    row_unpaired_text,
    text_row,
)
from pipeline.storage.tables import Row, TableWriter
from pipeline.types import Prompt, TextGroup, TextPair, TextPreference, UnpairedText, UserError

HELD_OUT_PAIRS = "held_out_pairs"
SCHEMAS: dict[str, pa.Schema] = {
    "prompts": PROMPTS,
    "held_out": PROMPTS,
    "texts": TEXTS,
    "pairs": TEXT_PAIRS,
    "groups": TEXT_GROUPS,
    "unpaired": UNPAIRED_TEXTS,
    HELD_OUT_PAIRS: TEXT_PAIRS,
}
_TABLES: dict[type[TextPreference], str] = {TextPair: "pairs", TextGroup: "groups", UnpairedText: "unpaired"}
Text = tuple[Prompt, str]


@dataclass(frozen=True)
class RunData:
    """A run's data: its distinct prompts on disk, and which of them are held out."""

    config: RunConfig
    distinct: DistinctPrompts
    split: Split

    def prompts(self) -> Iterator[Prompt]:
        """The distinct prompts that rounds may train on, in the order of the data."""
        return (prompt for prompt in self.distinct if not self.split.copies(prompt))

    def texts(self) -> Iterator[Text]:
        """Prompts and reference responses for the warm start; several for a prompt whose rows give several."""
        if self.config.warm_start is None or self.config.prompts is None:
            return
        for row in values(read_prompts(self.config.prompts)):
            if not self.split.copies(row.prompt):
                yield from ((row.prompt, text) for text in row.texts)

    def preferences(self) -> Iterator[tuple[str, TextPreference]]:
        """(table, preference) of what rounds may train on, and of pairs whose prompts are held out."""
        config, split = self.config, self.split
        given = None if config.prompts is not None else held_out_source(config)
        for row in _preferences(config.pairs):
            if not split.copies(row.prompt):
                yield _TABLES[type(row)], row
            elif given is None and (pair := self._held_out(row)):
                yield HELD_OUT_PAIRS, pair
        yield from ((HELD_OUT_PAIRS, pair) for row in _preferences(given) if (pair := self._held_out(row)))

    def _held_out(self, row: TextPreference) -> TextPair | None:
        return comparison(row) if self.split.holds_out(row.prompt) else None


def open_data(config: RunConfig) -> RunData:
    """Read the prompts and split them; writes nothing. Raises ``UserError`` if that cannot be done."""
    distinct = DistinctPrompts()
    source = prompt_source(config)
    for row in values(read_prompts(source)):
        distinct.add(row.prompt)
    if not len(distinct):
        raise UserError(f"{source.where}: holds no rows")
    given = held_out_source(config)
    if given is None:
        return RunData(config, distinct, split_held_out(distinct, config.held_out))
    held_out: dict[str, Prompt] = {}
    for row in values(read_prompts(given)):
        held_out.setdefault(row.prompt.id, row.prompt)
        if len(held_out) == config.held_out.prompts:
            break
    if not held_out:
        raise UserError(f"held_out: {given.where}: holds no rows")
    return RunData(config, distinct, Split.of([*held_out.values()]))


def drops_tie(row: TextPreference, source: UserData) -> bool:
    """Whether the row is a tie that majority votes leave out."""
    majority = source.columns.has_votes and source.votes.label == "majority"
    return majority and isinstance(row, TextPair) and row.soft_label == 0.5


def comparison(row: TextPreference) -> TextPair | None:
    """A pair as it is, of a group its best against its worst response; a single response compares nothing."""
    match row:
        case TextPair():
            return row
        case TextGroup() if max(row.rewards) > min(row.rewards):
            best, worst = (row.rewards.index(choose(row.rewards)) for choose in (max, min))
            return TextPair(
                row.prompt, row.responses[best], row.responses[worst], row.rewards[best], row.rewards[worst]
            )
    return None


def data(context: Context, folder: Path) -> Outcome:
    """Write the run's data, one folder a table."""
    sizes = sizes_of(context.config)
    with ExitStack() as opened:
        tables: dict[str, TableWriter] = {}
        for name, schema in SCHEMAS.items():
            (folder / name).mkdir(exist_ok=True)
            tables[name] = opened.enter_context(TableWriter(folder / name / "rows.parquet", schema))
        for name, row in table_rows(open_data(context.config)):
            tables[name].add(row)
    counts = {name: table.rows for name, table in tables.items()}
    return Outcome(sum(counts.values()), {**counts, **sizes})


def added_prompts(context: Context, round_: int, folder: Path) -> Outcome:
    """Write the prompts that the source has gained since an earlier round, but no copies of held-out ones."""
    source, sizes = prompt_source(context.config), sizes_of(context.config)
    known, split = {prompt.id for prompt in training_prompts(context, round_ - 1)}, Split.of(held_out_prompts(context))
    distinct = DistinctPrompts()
    for row in values(read_prompts(source)):
        if row.prompt.id not in known and not split.copies(row.prompt):
            distinct.add(row.prompt)
    (folder / "prompts").mkdir(exist_ok=True)
    with TableWriter(folder / "prompts" / "rows.parquet", PROMPTS) as table:
        for prompt in distinct:
            table.add(prompt_row(prompt))
    return Outcome(len(distinct), {"prompts": len(distinct), **sizes})


def table_rows(run_data: RunData) -> Iterator[tuple[str, Row]]:
    """(table, row) of everything that is kept."""
    yield from (("prompts", prompt_row(prompt)) for prompt in run_data.prompts())
    yield from (("held_out", prompt_row(prompt)) for prompt in run_data.split.held_out)
    yield from (("texts", {"prompt": prompt_row(prompt), "text": text}) for prompt, text in run_data.texts())
    yield from ((table, text_row(row)) for table, row in run_data.preferences())


def _preferences(source: UserData | None) -> Iterator[TextPreference]:
    if source is not None:
        yield from (row for row in values(read_preferences(source)) if not drops_tie(row, source))


# ---------------------------------------------------------------- what later stages read


def prompts_by_round(context: Context, round_: int) -> dict[int, list[Prompt]]:
    """The prompts that ``round_`` may train on, in the order of the data, by the round that they came with."""
    stages = [context.run.stage(0, "data"), *added_stages(context.run, round_)]
    return {stage.round: _prompts(stage.folder / "prompts") for stage in stages}


def training_prompts(context: Context, round_: int) -> list[Prompt]:
    """The same, one after the other."""
    return [prompt for prompts in prompts_by_round(context, round_).values() for prompt in prompts]


def held_out_prompts(context: Context) -> list[Prompt]:
    """The prompts that no round trains on."""
    return _prompts(_folder(context) / "held_out")


def warm_start_texts(context: Context) -> Iterator[Text]:
    """Prompts and reference responses for the warm start."""
    return ((row_prompt(row["prompt"]), row["text"]) for row in read_rows(_folder(context) / "texts"))


def text_preferences(context: Context) -> Iterator[TextPreference]:
    """The preferences of the data set that rounds may train on, in its order, of whatever form."""
    folder = _folder(context)
    yield from map(row_text_pair, read_rows(folder / "pairs"))
    yield from map(row_text_group, read_rows(folder / "groups"))
    yield from map(row_unpaired_text, read_rows(folder / "unpaired"))


def preference_slice(context: Context, round_: int) -> Iterator[TextPreference]:
    """Slice ``round_`` of the data set: contiguous, in its order."""
    counts, rounds = context.run.stage(0, "data").require().metrics, context.config.rounds
    total = sum(count for name in _TABLES.values() if isinstance(count := counts[name], int))
    return islice(text_preferences(context), ((round_ - 1) * total) // rounds, (round_ * total) // rounds)


def held_out_pairs(context: Context) -> Iterator[TextPair]:
    """Pairs of the data set whose prompts no round trains on."""
    return map(row_text_pair, read_rows(_folder(context) / HELD_OUT_PAIRS))


def _folder(context: Context) -> Path:
    return context.run.stage(0, "data").folder


def _prompts(folder: Path) -> list[Prompt]:
    return [row_prompt(row) for row in read_rows(folder)]
