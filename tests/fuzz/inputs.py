"""Inputs of each kind, as files in a folder."""

import csv
import gzip
import io
import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from pipeline.config import Columns, RunConfig, Votes
from pipeline.config.base import Closed
from pipeline.data.files.folders import SUFFIXES
from tests.fuzz.hostile import BYTES, YAML, as_json, damaged, nested, scalars, texts, values
from tests.support.places import ROOT

COLUMNS = (
    *Columns.model_fields,
    "messages",
    "conversations",
    "x.y",
    "rewards[0]",
    "chosen[-1].content",
    "",
    "role",
    "a\0b",
)
DEEPEST_COLUMN = 12
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "one", "chosen": "a b", "rejected": "c", "chosen_score": 1.5, "rejected_score": -1},
    {"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "x"}], "rejected": "y"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {
        "prompt": [{"role": "user", "content": "x"}],
        "chosen": "[{'role': 'assistant', 'content': 'a'}]",
        "rejected": "[1",
    },
    {"prompt": {"role": "Human", "content": "x"}, "tools": [{"type": "function", "function": {"name": "f"}}]}
    | {"chosen": {"role": "bot", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}
    | {"rejected": [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}], "rewards": -2},
    {"prompt": "two", "responses": ["a", "b", "c"], "rewards": [1, 2.5, True], "answer": 3},
    {"prompt": "three", "completion": "d", "label": True},
    {"prompt": "four", "chosen": "a", "rejected": "b", "votes": [1, 2, 0], "soft_label": 0.7, "response": "r"},
    {"prompt": [{"from": "human", "value": "a"}], "chosen": "p q", "rejected": "p r", "win_probability": "0.9"},
)


def _fields(section: Any, depth: int = 4) -> list[tuple[str, ...]]:
    """Paths of the settings below a section, as far as ``depth`` goes."""
    if isinstance(section, type) and issubclass(section, Closed):
        found: list[tuple[str, ...]] = []
        for name, field in section.model_fields.items():
            found.append((name,))
            if depth > 1:
                found += [(name, *path) for path in _fields(field.annotation, depth - 1)]
        return found
    return [path for part in get_args(section) for path in _fields(part, depth)]


@cache
def _paths() -> list[tuple[str, ...]]:
    return sorted(set(_fields(RunConfig)))


@cache
def _layers(folder: str) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in sorted((ROOT / "configs" / folder).glob("*.yaml"))]


@st.composite
def _setting(draw: st.DrawFn) -> tuple[tuple[str, ...], Any]:
    path = draw(st.sampled_from(_paths()))
    if draw(st.booleans()):
        path = (*path[:-1], draw(texts)) if draw(st.booleans()) else (*path, draw(texts))
    return path, draw(values)


@st.composite
def _layer(draw: st.DrawFn, folder: str) -> bytes:
    """A layer of settings, a shipped file with a line put in, hostile YAML, or any of these damaged."""
    way = draw(st.sampled_from(("settings", "shipped", "hostile", "lines")))
    if way == "settings":
        tree: Any = {}
        for path, value in draw(st.lists(_setting(), min_size=1, max_size=4)):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {}) if isinstance(node.get(name, {}), dict) else node
            node[path[-1]] = value
        # JSON is YAML, but for what either allows alone.
        return draw(damaged(as_json(tree).encode("utf-8", "surrogatepass")))
    lines = draw(st.sampled_from(_layers(folder))).splitlines()
    if way == "hostile":
        return draw(damaged(draw(st.sampled_from(YAML)).encode("utf-8", "surrogatepass")))
    if way == "lines":
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(YAML)).rstrip("\n"))
        return draw(damaged("\n".join(lines).encode("utf-8", "surrogatepass")))
    return draw(damaged("\n".join(lines).encode()))


@st.composite
def config_layers(draw: st.DrawFn, folder: Path) -> list[str]:
    """``0.yaml``, ``1.yaml``, ... over one another; returns overrides, kept in ``overrides.json``."""
    for place in range(draw(st.integers(1, 2))):
        (folder / f"{place}.yaml").write_bytes(draw(_layer("")))
    overrides = []
    for path, value in draw(st.lists(_setting(), max_size=2)):
        said = draw(st.sampled_from(YAML)) if draw(st.integers(0, 5)) == 0 else as_json(value)
        overrides.append(f"{'.'.join(path)}={said}" if draw(st.integers(0, 9)) else draw(texts))
    (folder / "overrides.json").write_text(json.dumps(overrides))
    return overrides


@st.composite
def accelerate_config(draw: st.DrawFn, folder: Path) -> Path:
    """What ``accelerate`` names."""
    content = draw(_layer("accelerate"))
    if draw(st.booleans()):
        tree = yaml.safe_load(draw(st.sampled_from(_layers("accelerate"))))
        tree[draw(st.sampled_from(sorted(tree)))] = draw(values)
        content = as_json(tree).encode("utf-8", "surrogatepass")
    file = folder / "accelerate.yaml"
    file.write_bytes(content)
    return file


# ---------------------------------------------------------------- data


@st.composite
def _row(draw: st.DrawFn) -> Any:
    row: Any = dict(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 3))):
        row[draw(st.sampled_from(COLUMNS))] = draw(values)
    odd = draw(st.integers(0, 30))
    if odd == 0:
        row[draw(st.sampled_from(COLUMNS))] = nested(draw(st.sampled_from((50, 900, 5000))))
    return draw(values) if odd == 1 else row


@st.composite
def data_file(draw: st.DrawFn, folder: Path) -> Path:
    """One file of data, of any kind."""
    suffix = draw(st.sampled_from(SUFFIXES))
    kind = suffix.removesuffix(".gz").removeprefix(".")
    rows = draw(st.lists(_row(), max_size=4))
    if kind in ("parquet", "arrow", "feather"):
        content = draw(_columnar(rows, kind))
    elif kind == "csv":
        content = _csv_text(rows).encode("utf-8", "surrogatepass")
    else:
        try:
            lines = [as_json(row) for row in rows]
        except RecursionError:
            lines = ['{"prompt": ' + "[" * 5000]
        text = f"[{','.join(lines)}]" if kind == "json" else "".join(f"{line}\n" for line in lines)
        content = text.encode("utf-8", "surrogatepass")
    content = draw(damaged(content))
    if suffix.endswith(".gz"):
        content = draw(damaged(gzip.compress(content, 1)))
    file = folder / f"rows{suffix}"
    file.write_bytes(content)
    return file


def _csv_text(rows: list[Any]) -> str:
    with io.StringIO(newline="") as output:
        writer = csv.writer(output, escapechar="\\")
        header = [str(name) for name in (rows[0] if rows and isinstance(rows[0], dict) else ("prompt", "chosen"))]
        writer.writerow(header)
        for row in rows:
            cells = [*row.values()] if isinstance(row, dict) else [row]
            writer.writerow(["" if cell is None else _plain(cell) for cell in cells])
        return output.getvalue()


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [
        inner
        for item in level
        for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    ]:
        depth += 1
    return depth


def _plain(cell: Any) -> str:
    try:
        return cell if isinstance(cell, str) else as_json(cell)
    except RecursionError:
        return "deep"


@st.composite
def _columnar(draw: st.DrawFn, rows: list[Any], kind: str) -> bytes:
    count = len(rows)
    columns = {name: _column([row.get(name) if isinstance(row, dict) else row for row in rows]) for name in ROWS[0]}
    for _ in range(draw(st.integers(0, 3))):
        columns[draw(st.sampled_from(COLUMNS))] = draw(_odd_column(count))
    table = pa.table(columns)
    group, as_file = draw(st.sampled_from((1, 100))), draw(st.booleans())
    with io.BytesIO() as output:
        try:
            if kind == "parquet":
                pq.write_table(table, output, compression="none", row_group_size=group)
            else:
                make = pa.ipc.new_file if as_file else pa.ipc.new_stream
                with make(output, table.schema) as writer:
                    writer.write_table(table)
        except pa.ArrowException:
            # Some types have no place in these formats.
            return b"PAR1"
        return output.getvalue()


def _column(cells: list[Any]) -> pa.Array:
    # Arrow itself needs gigabytes for a type of hundreds of levels.
    cells = ["deep" if _depth(cell) > DEEPEST_COLUMN else cell for cell in cells]
    try:
        return pa.array(cells)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
        return pa.array([None if cell is None else _plain(cell).encode("utf-8", "replace").decode() for cell in cells])


@st.composite
def _odd_column(draw: st.DrawFn, count: int) -> pa.Array:
    """Columns of types that no text file has."""
    if not count:
        return pa.nulls(0)
    way = draw(st.sampled_from(("not utf-8", "binary", "timestamp", "decimal", "map", "dictionary", "large", "null")))
    numbers = [draw(st.sampled_from((0, 1, -1, 2**62, -(2**62)))) for _ in range(count)]
    match way:
        case "not utf-8":
            cells = [draw(st.sampled_from((b"\xff", b"ok", b"\xed\xa0\x80", b"a\0"))) for _ in range(count)]
            buffers = pa.array(cells, pa.binary()).buffers()
            return pa.StringArray.from_buffers(count, buffers[1], buffers[2])
        case "binary":
            return pa.array([draw(st.binary(max_size=4)) for _ in range(count)], pa.binary())
        case "timestamp":
            unit = draw(st.sampled_from((pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.duration("s"), pa.date64())))
            return pa.array(numbers, pa.int64()).view(unit)
        case "decimal":
            return pa.array([None] * count, pa.decimal128(38, 10))
        case "map":
            return pa.array([[("role", "user"), ("role", "x")]] * count, pa.map_(pa.string(), pa.string()))
        case "dictionary":
            return pa.array(["a", "b", None, "c"][:count] * (count <= 4), pa.string()).dictionary_encode()
        case "large":
            return pa.array([["x"] * 3] * count, pa.large_list(pa.large_string()))
    return pa.nulls(count)


@st.composite
def data_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Columns and votes that may or may not be in the file."""
    settings: dict[str, Any] = {}
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(tuple(Columns.model_fields)), max_size=3, unique=True))
        settings["columns"] = {name: draw(st.sampled_from(COLUMNS)) for name in names}
    if draw(st.integers(0, 3)) == 0:
        settings["votes"] = {name: draw(scalars) for name in Votes.model_fields}
    meanings: dict[str, tuple[Any, ...]] = {
        "rewards_are": ("scores", "ranks", "signed"),
        "rows": ("whole", "responses"),
        "system": ("turn", "user"),
        "parse": (True, False),
        "split": (None, "train", "all"),
        "delimiter": (None, ";", "\t"),
        "labels": ({"good": ["a"], "bad": ["b", 3]}, {}),
        "signed": ({"strength": "margin"}, {"first": 1, "second": 0}),
    }
    for name in draw(st.lists(st.sampled_from(tuple(meanings)), max_size=2, unique=True)):
        settings[name] = draw(st.sampled_from(meanings[name]))
    return settings


# ---------------------------------------------------------------- small files of a run folder


@st.composite
def small_file(draw: st.DrawFn, examples: tuple[str, ...]) -> bytes:
    """One of ``examples`` with values changed, or damaged."""
    text = draw(st.sampled_from(examples))
    lines = text.splitlines() if draw(st.booleans()) else [text]
    changed = []
    for line in lines:
        try:
            plain = json.loads(line)
        except ValueError:
            changed.append(line)
            continue
        if isinstance(plain, dict) and plain and draw(st.booleans()):
            plain[draw(st.sampled_from(sorted(plain)))] = draw(values)
        changed.append(as_json(plain))
    content = "\n".join(changed).encode("utf-8", "surrogatepass") + b"\n"
    return draw(damaged(content)) if draw(st.integers(0, 9)) else draw(st.sampled_from(BYTES))
