"""Held-out measures by a column of the data, from the stages of a tiny run."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from flows.report.findings.parts import part_table
from flows.report.terminal import _print_parts
from flows.stages.context import Context
from flows.stages.data import held_out_prompts
from flows.stages.run import run_stage
from pipeline.config.files import dump_config, load_config
from pipeline.errors import UserError
from pipeline.storage.atomic import write_text
from pipeline.storage.run_folder import RunFolder
from tests.support.sampling_here import SamplesHere
from tests.support.suite_files import write_rows, write_suite_job

TOPICS = ("cats", "dogs")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("categories")
    write_suite_job(folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    # The last row says nothing.
    told = [{**row, "about": {"topic": TOPICS[n % 2]}} for n, row in enumerate(rows[:-1])]
    write_rows(folder / "pairs.jsonl", [*told, rows[-1]])
    return folder


def test_measures_are_told_apart_by_a_column(job: Path, tmp_path: Path) -> None:
    config = load_config([job / "run.yaml"], ["evaluation.category=about.topic", "held_out.prompts=8"])
    context = Context(RunFolder(tmp_path), config)
    write_text(context.run.config_file, dump_config(config))
    for name in ("data", "policy", "evaluation_samples", "evaluation"):
        run_stage(context, 0, name, SamplesHere(config))
    folder = context.run.stage(0, "evaluation").folder
    metrics = json.loads((folder / "metrics.json").read_text())
    held_out = held_out_prompts(context)
    numbers = {prompt.id: int(prompt.messages[0].content.rpartition(" ")[2]) for prompt in held_out}
    expected = {name: "–" if n == 19 else TOPICS[n % 2] for name, n in numbers.items()}
    assert json.loads((folder / "categories.json").read_text()) == expected and len({*expected.values()}) > 1
    counted = {name: [*expected.values()].count(name) for name in expected.values()}
    assert {name: one["prompts"] for name, one in metrics["by_category"].items()} == counted
    pairs = metrics["held_out_by_category"]
    assert pairs.keys() == counted.keys() and all(one["held_out_accuracy"] == 0.5 for one in pairs.values())
    # Parts together are the whole.
    for name in ("held_out_log_loss", "held_out_margin", "held_out_accuracy"):
        weighted = sum(one["held_out_pairs"] * one[name] for one in pairs.values())
        assert weighted / metrics["held_out_pairs"] == pytest.approx(metrics[name])
    assert sum(one["held_out_pairs"] for one in pairs.values()) == metrics["held_out_pairs"]
    told = metrics["by_category"].values()
    assert all(one["kl_to_start"] == one["kl_to_previous"] == 0 for one in told)
    table = part_table([metrics])
    rows, place = {row[0]: row[1:] for row in table.rows[0]}, table.headings.index("held-out accuracy")
    assert rows.keys() == counted.keys() and all(row[place].startswith("50.0% (") for row in rows.values())


@pytest.mark.parametrize("width", [80, 30])
def test_parts_are_shown_whole_in_a_narrow_terminal(width: int) -> None:
    one = {"prompts": 12, "reward": 2.25, "reward_ci": [2.0, 2.5], "kl_to_start": 0.125, "response_length": 21.5}
    measures = {**one, "win_rate_vs_start": 0.5, "win_rate_vs_start_ci": [0.25, 0.75], "reference_logprob": -0.5}
    console = Console(width=width, record=True, file=io.StringIO())
    _print_parts(console, {"round": 3, "by_source": {"easy.jsonl": measures, "hard.jsonl": measures}})
    said = console.export_text()
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    for cell in ("2.250", "(2.000 to 2.500)", "0.125", "50.0%", "(25.0% to 75.0%)", "-0.500", "21.5"):
        assert said.count(cell) == 2, cell


def test_a_category_of_data_without_columns_is_refused() -> None:
    said = "evaluation.category: 'topic' names a column, and prompts.kind: restaurants has none"
    with pytest.raises(UserError, match=re.escape(said)):
        load_config([Path("quickstart")], ["evaluation.category=topic"])
