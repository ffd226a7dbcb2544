"""data: the user's rows, split by prompt and frozen in the run folder, one at a time."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pydantic import JsonValue

from flows.preflight.tokens import tokens_for_dropping
from flows.run_folder.growth import added_stages, sizes_of
from flows.stages.context import Context, Outcome
from pipeline.data.dropping import Dropping
from pipeline.data.reading import values
from pipeline.data.run_data import HELD_OUT_PAIRS, PREFERENCE_TABLES, RunData, Text, open_data
from pipeline.data.split import Split
from pipeline.data.spool.distinct import DistinctPrompts
from pipeline.data.spool.kept_rows import RunRows
from pipeline.storage.parquet.tables import Row, TableWriter
from pipeline.storage.rows import (
    PROMPTS,
    TEXT_GROUPS,
    TEXT_PAIRS,
    TEXTS,
    UNPAIRED_TEXTS,
    prompt_row,
    read_prompt_table,
    read_rows,
    row_prompt,
    row_text_group,
    row_text_pair,
    row_unpaired_text,
    text_row,
)
from pipeline.types import Prompt, TextPair, TextPreference

SCHEMAS: dict[str, pa.Schema] = {
    "prompts": PROMPTS,
    "held_out": PROMPTS,
    "texts": TEXTS,
    "pairs": TEXT_PAIRS,
    "groups": TEXT_GROUPS,
    "unpaired": UNPAIRED_TEXTS,
    HELD_OUT_PAIRS: TEXT_PAIRS,
}


def data(context: Context, folder: Path) -> Outcome:
    """Write the run's data, one folder per table."""
    sizes = sizes_of(context.config)
    with ExitStack() as opened:
        tables: dict[str, TableWriter] = {}
        for name, schema in SCHEMAS.items():
            (folder / name).mkdir(exist_ok=True)
            tables[name] = opened.enter_context(TableWriter(folder / name / "rows.parquet", schema))
        run_data = open_data(context.config, tokens_for_dropping(context.config))
        for name, row in table_rows(run_data):
            tables[name].add(row)
    counts = {name: table.rows for name, table in tables.items()}
    further = _dropped(run_data.dropping) | _mixtures(run_data.rows)
    return Outcome(sum(counts.values()), {**counts, **sizes, **further})


def added_prompts(context: Context, round_: int, folder: Path) -> Outcome:
    """Write the prompts that the source has gained since an earlier round, without copies of held-out ones."""
    sizes = sizes_of(context.config)
    known, split = {prompt.id for prompt in training_prompts(context, round_ - 1)}, Split.of(held_out_prompts(context))
    rows, distinct = RunRows(context.config), DistinctPrompts()
    dropping = Dropping(context.config, rows, tokens_for_dropping(context.config))
    held_out = _held_out_origins(context, rows, split)
    for row in values(dropping.rows("prompts", rows.prompts("prompts"))):
        prompt = row.prompt
        if prompt.id not in known and prompt.origin not in held_out and not split.copies(prompt):
            distinct.add(prompt)
    (folder / "prompts").mkdir(exist_ok=True)
    with TableWriter(folder / "prompts" / "rows.parquet", PROMPTS) as table:
        for prompt in distinct:
            table.add(prompt_row(prompt))
    return Outcome(len(distinct), {"prompts": len(distinct), **sizes, **_dropped(dropping)})


def _held_out_origins(context: Context, rows: RunRows, split: Split) -> set[str]:
    """Return the sources of held-out prompts, if sources are held out."""
    if context.config.held_out.by != "source":
        return set()
    found = values(rows.prompts("prompts"))
    return {row.prompt.origin for row in found if split.holds_out(row.prompt)} - {""}


def _dropped(dropping: Dropping) -> dict[str, JsonValue]:
    """Rows that ``limits`` drops, by source and cause, for the manifest; nothing if it drops none."""
    counts: dict[str, JsonValue] = {source: {**found} for source, found in dropping.counts.items()}
    return {"dropped": counts} if counts else {}


def _mixtures(rows: RunRows) -> dict[str, JsonValue]:
    """Rows of the members of mixtures, for the manifest; nothing without a mixture."""
    counts: dict[str, JsonValue] = {one.name: {"used": one.used, "readable": one.readable} for one in rows.members()}
    return {"mixtures": counts} if counts else {}


def table_rows(run_data: RunData) -> Iterator[tuple[str, Row]]:
    """(table, row) for every row that is kept."""
    yield from (("prompts", prompt_row(prompt)) for prompt in run_data.prompts())
    yield from (("held_out", prompt_row(prompt)) for prompt in run_data.split.held_out)
    yield from (("texts", {"prompt": prompt_row(prompt), "text": text}) for prompt, text in run_data.texts())
    yield from ((table, text_row(row)) for table, row in run_data.preferences())


# ---------------------------------------------------------------- what later stages read


def prompts_by_round(context: Context, round_: int) -> dict[int, list[Prompt]]:
    """The prompts that ``round_`` may train on, in the order of the data, by the round that added them."""
    stages = [context.run.stage(0, "data"), *added_stages(context.run, round_)]
    return {stage.round: _prompts(stage.folder / "prompts") for stage in stages}


def training_prompts(context: Context, round_: int) -> list[Prompt]:
    """The prompts that ``round_`` may train on, one after the other."""
    return [prompt for prompts in prompts_by_round(context, round_).values() for prompt in prompts]


def held_out_prompts(context: Context) -> list[Prompt]:
    """The prompts that no round trains on."""
    return _prompts(_folder(context) / "held_out")


def warm_start_texts(context: Context) -> Iterator[Text]:
    """Prompts and reference responses for the warm start."""
    return ((row_prompt(row["prompt"]), row["text"]) for row in read_rows(_folder(context) / "texts"))


def text_preferences(context: Context) -> Iterator[TextPreference]:
    """The data set's preferences for training, in its order and in any form."""
    folder = _folder(context)
    yield from map(row_text_pair, read_rows(folder / "pairs"))
    yield from map(row_text_group, read_rows(folder / "groups"))
    yield from map(row_unpaired_text, read_rows(folder / "unpaired"))


def preference_slice(context: Context, round_: int) -> Iterator[TextPreference]:
    """Slice ``round_`` of the data set: contiguous, in the data's order."""
    counts, rounds = context.run.stage(0, "data").require().metrics, context.config.rounds
    total = sum(count for name in PREFERENCE_TABLES.values() if isinstance(count := counts[name], int))
    return islice(text_preferences(context), ((round_ - 1) * total) // rounds, (round_ * total) // rounds)


def held_out_pairs(context: Context) -> Iterator[TextPair]:
    """Pairs of the data set whose prompts no round trains on."""
    return map(row_text_pair, read_rows(_folder(context) / HELD_OUT_PAIRS))


def _folder(context: Context) -> Path:
    return context.run.stage(0, "data").folder


def _prompts(folder: Path) -> list[Prompt]:
    return [*read_prompt_table(folder)]
