"""The rows of suites: read from their files, refused by file and row, and put as prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import FileData, Suite
from pipeline.config.evaluation.suites import (
    AlpacaEvalSuite,
    ArenaHardSuite,
    IfevalSuite,
    LmEvalSuite,
    RewardBenchSuite,
    suite_name,
)
from pipeline.data.files.records import Record, read_records
from pipeline.data.spool.categories import NO_CATEGORY
from pipeline.errors import UserError
from pipeline.safe_text import one_line
from pipeline.types import Message, Prompt
from pipeline.types.counts import number_of
from pipeline.types.instructions import Instructions


def suite_rows(suite: Suite, path: str, *, limited: bool = True) -> list[Record]:
    """Read the rows of a file of ``suite``. Raises ``UserError`` for a row that cannot be read, or none."""
    if not Path(path).is_file():
        raise UserError(f"evaluation.suites: {suite_name(suite)}: {path}: no such file")
    rows = []
    for record in read_records(FileData(path=path)):
        if record.fault is not None:
            raise UserError(f"evaluation.suites: {suite_name(suite)}: {record.place}: {record.fault}")
        rows.append(record)
        if limited and len(rows) == suite.limit:
            break
    if not rows:
        raise UserError(f"evaluation.suites: {suite_name(suite)}: {path}: no rows")
    return rows


def cell_text(values: Mapping[str, Any], column: str, place: str) -> str:
    """Return the text of a row's column. Raises ``UserError`` if it holds none."""
    value = values.get(column)
    if not isinstance(value, str) or not value.strip():
        has = ", ".join(sorted(map(str, values)))[:200]
        raise UserError(f"{place}: {column}: must be a text, not {str(value)[:80]!r}; the row has {has}")
    return value


def instructions_of(values: Mapping[str, Any], place: str) -> Instructions:
    """Read a row. Raises ``UserError`` that names ``place`` and the column."""
    prompt, ids, kwargs = (values.get(name) for name in ("prompt", "instruction_id_list", "kwargs"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place}: prompt: must be a text, not {str(prompt)[:80]!r}")
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise UserError(f"{place}: instruction_id_list: must be a list of names, not {str(ids)[:80]!r}")
    if not isinstance(kwargs, list) or not all(isinstance(one, dict | None) for one in kwargs):
        raise UserError(f"{place}: kwargs: must be a list of objects, not {str(kwargs)[:80]!r}")
    if len(kwargs) != len(ids):
        raise UserError(
            f"{place}: kwargs: {len(kwargs)} for {number_of(len(ids), 'instruction')}; allowed: one for each"
        )
    return Instructions(str(values.get("key", place)), prompt, tuple(ids), tuple(one or {} for one in kwargs))


def instructions(suite: IfevalSuite) -> list[Instructions]:
    """The rows of a suite of verifiable instructions."""
    return [instructions_of(record.values, record.place) for record in suite_rows(suite, suite.file)]


def row_categories(suite: AlpacaEvalSuite | ArenaHardSuite) -> list[str]:
    """The category of each row: by ``suite.category``, or by the published column if any row has it; else none.

    Raises ``UserError`` if no row has the column that ``suite.category`` names.
    """
    rows = suite_rows(suite, suite.file)
    column = suite.category or ("dataset" if isinstance(suite, AlpacaEvalSuite) else "category")
    found = [one_line(str(row.values.get(column) or NO_CATEGORY), 100) for row in rows]
    if {*found} == {NO_CATEGORY}:
        if suite.category is not None:
            has = ", ".join(sorted(map(str, rows[0].values)))[:200]
            raise UserError(
                f"evaluation.suites: {suite_name(suite)}: category: no row of {suite.file} has {column!r}; the first "
                f"has {has}"
            )
        return []
    return found


def arena_questions(suite: ArenaHardSuite) -> dict[str, str]:
    """The questions by their id: ``uid`` and ``prompt``, or ``question_id`` and the first of ``turns``."""
    found: dict[str, str] = {}
    for record in suite_rows(suite, suite.file):
        values = record.values
        key = cell_text(values, "uid" if "uid" in values else "question_id", record.place)
        if key in found:
            raise UserError(f"{record.place}: {key!r} is the id of an earlier row")
        turns = values.get("turns")
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            found[key] = cell_text(turns[0], "content", record.place)
        else:
            found[key] = cell_text(values, "prompt", record.place)
    return found


def baseline_answers(suite: ArenaHardSuite) -> dict[str, str]:
    """The baseline's answers by question. Raises ``UserError`` for a question without one."""
    found: dict[str, str] = {}
    for record in suite_rows(suite, suite.baseline, limited=False):
        key = cell_text(record.values, "uid" if "uid" in record.values else "question_id", record.place)
        found[key] = _answer_of(record.values, record.place)
    missing = [key for key in arena_questions(suite) if key not in found]
    if missing:
        raise UserError(f"{suite.baseline}: no answer to question {missing[0]!r} ({len(missing)} are missing)")
    return found


def _answer_of(values: dict[str, Any], place: str) -> str:
    """The text of a published answer: the last of ``messages``, or the first turn of the first of ``choices``."""
    try:
        if "messages" in values:
            content = values["messages"][-1]["content"]
            return str(content["answer"] if isinstance(content, dict) else content)
        return str(values["choices"][0]["turns"][0]["content"])
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{place}: holds no answer under messages or choices") from None


def questions(suite: Suite) -> list[Prompt]:
    """What the policy is asked, in the order of the file."""
    match suite:
        case IfevalSuite():
            asked = [row.prompt for row in instructions(suite)]
        case AlpacaEvalSuite():
            asked = [cell_text(row.values, "instruction", row.place) for row in suite_rows(suite, suite.file)]
        case ArenaHardSuite():
            asked = [*arena_questions(suite).values()]
        case LmEvalSuite() | RewardBenchSuite():
            raise ValueError(f"{suite.kind} has no questions of its own")
    return [Prompt((Message("user", text),)) for text in asked]
