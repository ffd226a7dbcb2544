"""Rows that stopped a run, kept for people to look at: in ``offending/`` of the run folder, outside of any stage."""

from collections.abc import Collection
from pathlib import Path

from flows.stages.context import Context
from pipeline.storage.rows import read_preferences, write_preferences


def offending_file(context: Context, title: str) -> Path:
    """Where the rows are kept that stopped the stage ``title`` (``round_001/samples``); the folder is made."""
    folder = context.run.root / "offending"
    folder.mkdir(exist_ok=True)
    return folder / f"{title.replace('/', '_')}.parquet"


def keep_rows(context: Context, round_: int, ids: Collection[str], file: Path) -> None:
    """Write the rows of ``ids`` that the round trains on to ``file``."""
    wanted = set(ids)
    preferences = read_preferences(context.run.stage(round_, "pairs").folder)
    write_preferences(file, (row for row in preferences if row.id in wanted))
