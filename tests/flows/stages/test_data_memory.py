"""Memory does not grow with the user's data: reading it, checking it, splitting it, writing it to the run folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.data.files.test_formats import write
from tests.support.places import ROOT

# Reads, checks (without tokens) and writes what it is told, and prints its peak of memory in MiB after each.
PROGRAM = """
import sys
from pathlib import Path
from flows.preflight.data import _contents
from flows.stages.data import SCHEMAS, table_rows
from pipeline.data.run_data import open_data
from pipeline.config.files import load_config
from pipeline.data.faults import FaultFinder
from pipeline.storage.parquet.tables import TableWriter

for path in sys.argv[2:]:
    config = load_config([Path(sys.argv[1])], [f"pairs.path={path}"])
    run_data = open_data(config)
    finder = FaultFinder()
    for _, rows in run_data.rows.all():
        for row in rows:
            assert not [*finder.faults(row.place, row.value)]
    _contents(run_data, repr)
    out = {name: TableWriter(Path(path).parent / name, schema) for name, schema in SCHEMAS.items()}
    for name, row in table_rows(run_data):
        out[name].add(row)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024, out["pairs"].rows)
"""
# Makes pairs of so many groups of two responses and writes them as the pairs stage does; prints its peak in MiB.
PAIRS = """
import sys
from collections import Counter
from pathlib import Path
from pipeline.config import Pairing
from pipeline.training.pairs import drop_repeated, make_pairs
from pipeline.storage.rows import write_preferences
from pipeline.types import Group, Message, Prompt, Response

def groups(count):
    for n in range(count):
        drawn = tuple(Response(f"{n} {k}", tuple(range(n + k, n + k + 300)), (-1.5 - n,) * 300, "stop") for k in (0, 1))
        yield Group(Prompt((Message("user", str(n)),)), (1, 2), drawn, (0.0, 1.0))

for count in map(int, sys.argv[2:]):
    dropped = Counter()
    made = make_pairs(groups(count), Pairing(), 1, 0, dropped=dropped)
    rows = write_preferences(Path(sys.argv[1]), drop_repeated(made, (), dropped=dropped))
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024, rows)
"""
# Below 8,000 rows the readers' buffers are still filling, which looks like growth.
FEW, MANY = 8_000, 16_000


def rows(count: int) -> list[dict[str, str]]:
    """6 kB a row, other text in each."""
    words = {"prompt": "so", "chosen": "yes", "rejected": "no"}
    return [{side: f"{n} {word} " * 200 for side, word in words.items()} for n in range(10**5, 10**5 + count)]


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_the_data(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: m\nmode: offline\npolicy: {path: none}\npairs: {path: x}\n")
    files = [write(tmp_path / f"{count}.{kind}", rows(count)) for count in (FEW, MANY)]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run.yaml"), *map(str, files)]
    # Arrow's usual pool keeps what was freed for later; the system's shows what is held.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
    (small, few), (large, many) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (FEW - 128, MANY - 128)
    text = sum(len(json.dumps(row)) for row in rows(MANY)) / 2**20
    print(f"{kind}: {small} MiB for {FEW} rows, {large} MiB for {MANY} rows of {text:.0f} MiB")
    assert large - small < text / 2


@pytest.mark.whole
def test_memory_does_not_grow_with_the_pairs_of_a_round(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PAIRS, str(tmp_path / "rows.parquet"), str(FEW), str(MANY)]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
    (small, few), (large, many) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (FEW, MANY)
    # In memory, ids and log-probabilities take about 68 bytes a token: 40 kB a pair.
    print(f"{small} MiB for {FEW} pairs, {large} MiB for {MANY}")
    assert large - small < (MANY - FEW) * 10 / 2**10
