"""Slices of real data through a round of offline training: votes, rankings with ties, right and wrong solutions."""

import gzip
import math
from collections import Counter
from pathlib import Path

import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import load_config
from pipeline.storage.rows import read_preference_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import read_steps
from pipeline.types import Group, Pair
from tests.support.real_data import COLUMNS, FILES, needs_real_data
from tests.support.tiny_model import save_tiny_model

pytestmark = needs_real_data
ROWS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), scale=0.02)


def trained(name: str, folder: Path, model: Path, *settings: str) -> Context:
    """A round on the first rows that are short, up to its policy."""
    opened = gzip.open if FILES[name].suffix == ".gz" else open
    with opened(FILES[name], "rt", encoding="utf-8") as lines:
        rows = [line for line in lines if len(line) < 8000][:ROWS]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "run.yaml").write_text(
        f"name: real\nmode: offline\npolicy: {{path: {model}}}\nheld_out: {{prompts: 4}}\n"
        f"pairs: {{path: {folder / 'rows.jsonl'}, columns: {COLUMNS[name]}}}\n"
        "chat: {max_prompt_tokens: 200, max_response_tokens: 40}\n"
        "training: {learning_rate: 2.0e-3, batch_size: 8, epochs: 3, warmup: 0, schedule: constant}\n"
    )
    context = Context(RunFolder(folder / "run"), load_config([folder / "run.yaml"], settings))
    run_stage(context, 0, "data")
    run_stage(context, 0, "policy")
    for stage in ("pairs", "reference", "policy"):
        run_stage(context, 1, stage)
    return context


def losses(context: Context) -> list[float]:
    return [step.loss for step in read_steps(context.run.stage(1, "policy").folder / "steps.jsonl")]


def test_three_votes_are_soft_labels(tmp_path: Path, model: Path) -> None:
    context = trained("pandalm", tmp_path, model)
    pairs = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    labels = Counter(round(pair.soft_label, 3) for pair in pairs)
    assert set(labels) <= {1.0, 0.667, 0.833, 0.5} and labels[1.0] > len(pairs) / 2
    found = losses(context)
    assert found[0] == pytest.approx(math.log(2), abs=1e-3)
    assert sum(found[-5:]) / 5 < 0.66


@pytest.mark.parametrize(("name", "loss"), [("mtbench", "rpo_list_fwd"), ("gsm8k", "infonca")])
def test_ranked_responses_are_groups_with_their_ties(name: str, loss: str, tmp_path: Path, model: Path) -> None:
    context = trained(name, tmp_path, model, f"loss.preset={loss}")
    groups = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Group)]
    assert groups and {len(group.responses) for group in groups} <= {2, 3, 4}
    assert any(len(set(group.scores)) < len(group.scores) for group in groups)
    if name == "gsm8k":
        assert {score for group in groups for score in group.scores} == {0.0, 1.0}
    found = losses(context)
    assert all(map(math.isfinite, found)) and sum(found[-3:]) < sum(found[:3])


def test_ties_of_right_and_wrong_solutions_make_no_pair(tmp_path: Path, model: Path) -> None:
    context = trained("gsm8k", tmp_path, model)
    manifest = context.run.stage(1, "pairs").require()
    dropped = manifest.metrics["dropped"]
    assert isinstance(dropped, dict) and manifest.metrics["margin"] == 1.0
    # 60 rows, 4 of them held out; all solutions of 14 are right, or wrong.
    assert (dropped["long_prompt"], dropped["tie"], manifest.rows) == (20, 14, 22)
    found = losses(context)
    assert found[0] == pytest.approx(math.log(2), abs=1e-3) and sum(found[-5:]) / 5 < 0.66
