"""The categories of held-out prompts, from a column of the user's data. Torch-free."""

from collections.abc import Collection
from typing import Any

from pipeline.config import DatasetData, FileData, MixtureData, RunConfig
from pipeline.data.reading import values
from pipeline.data.sources import held_out_source
from pipeline.data.spool.kept_rows import RunRows

NO_CATEGORY = "–"


def held_out_categories(config: RunConfig, column: str, ids: Collection[str]) -> dict[str, str]:
    """Return what ``column`` says of the prompts with these ids, in one pass; of several rows the first counts.

    Raises ``UserError`` if the data cannot be read.
    """
    # A prompt's origin is what the column of sources holds; it is read from the column of categories here.
    changed = config.model_copy(
        update={"prompts": _told_by(config.prompts, column), "pairs": _told_by(config.pairs, column)}
    )
    own = held_out_source(config) is not None
    rows = RunRows(changed).prompts("held_out" if own else "pairs" if config.prompts is None else "prompts")
    wanted, found = {*ids}, dict[str, str]()
    for row in values(rows):
        if row.prompt.id in wanted:
            found.setdefault(row.prompt.id, row.prompt.origin or NO_CATEGORY)
            if len(found) == len(wanted):
                break
    return found


def _told_by(data: Any, column: str) -> Any:
    """``data`` with ``column`` in the place of the column of sources."""
    if isinstance(data, MixtureData):
        return data.model_copy(update={"of": tuple(_told_by(one, column) for one in data.of)})
    if isinstance(data, FileData | DatasetData):
        return data.model_copy(update={"columns": data.columns.model_copy(update={"source": column})})
    return data
