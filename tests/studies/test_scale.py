"""The page on scale says what its script computes, and the script computes what prefloop does."""

import math
from pathlib import Path

import pytest

from flows.run_folder.stage_table import made_in, names_in
from pipeline.config.files import load_config
from tests.benchmarks.bookkeeping import measure
from tests.studies import scale
from tests.support.places import ROOT
from tests.support.tiny_run import make_job

PAGE = ROOT / "flows" / "loop" / "SCALE.md"


def test_the_page_holds_the_tables() -> None:
    assert scale.tables() in PAGE.read_text(encoding="utf-8")


def test_hours_and_bytes_are_what_they_should_be() -> None:
    work, moved = dict(scale.work()), {passage.way: passage for passage in scale.passages()}
    assert work["sampling"] == pytest.approx(8e9 / 96_000)
    # 2 N a token for a pass; forward, backward and once more forward are four of them.
    assert work["training, with activations computed again"] == pytest.approx(4 * work["reference pass"])
    assert work["labels by an 8B reward model"] == pytest.approx(2 * 8e9 * 9.6e9 / (64 * 400e12))
    assert moved["engines → driver"].bytes == pytest.approx(128e9)
    assert moved["policy → engines"].seconds == pytest.approx(140e9 / 2e9)


def test_a_round_has_as_many_tasks_as_the_page_says(tmp_path: Path) -> None:
    config = load_config([make_job(tmp_path) / "iterative.yaml"])
    made = [name for name in names_in(config, 1) if made_in(config, 1, name)]
    told = {what: number for what, _, number in scale.growth()}
    assert len(made) == told["Prefect task runs a round"] == told["manifests a round"] == 8


def counted(prompts: int) -> None:
    found = measure(prompts, 8, 8)
    shards = math.ceil(prompts / scale.SHARD)
    # Besides them a manifest.
    assert (found["samples"]["files"], found["labels"]["files"]) == (shards + 1, 2 * shards + 1)
    for stage in ("samples", "labels"):
        memory = found[stage]["memory"]
        assert max(memory[len(memory) // 2 :], default=0) <= memory[0] + 24, f"{stage}: {memory} MiB"


def test_prompts_go_through_the_pool_and_into_files() -> None:
    counted(1500)


@pytest.mark.whole
def test_memory_is_flat_over_twenty_thousand_prompts() -> None:
    counted(20_000)
