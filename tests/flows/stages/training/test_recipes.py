"""The recipes in configs/recipes: two steps of each on a tiny model, stage by stage in this process."""

import json
import math
from pathlib import Path

import pytest

from flows.stages.context import Context
from pipeline.config import RunConfig
from pipeline.config.files import dump_config, load_config
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS, read_steps
from tests.support.places import CONFIGS
from tests.support.tiny_run import begin, make_job, train

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
# What a recipe's loss is before the first step; None: it depends on the model.
AT_START = {
    "d2po_gold_budget": math.log(2),
    "simpo_on_policy": None,
    "sppo": None,
    "thinking_verifiable": None,
    "tulu3_dpo_norm": math.log(2),
    "zephyr_dpo": math.log(2),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("recipes"))


def tiny(recipe: Path, job: Path) -> RunConfig:
    """The recipe with a tiny model and data in place of those to fill in, in float32, and two steps a round."""
    settings = [f"policy.path={job / 'model'}", "held_out={prompts: 4}", "training.max_steps=2"]
    settings += ["training.dtype=float32", "training.batch_size=4", "training.reference_cache=null"]
    if "mode: offline" in recipe.read_text(encoding="utf-8"):
        return load_config([recipe], [*settings, f"pairs.path={job / 'pairs.jsonl'}"])
    settings += [f"prompts.path={job / 'pairs.jsonl'}", "prompts_per_round=12", "scorer={kind: match}"]
    return load_config([recipe], settings)


def test_every_recipe_is_listed() -> None:
    assert [recipe.stem for recipe in RECIPES] == sorted(AT_START)
    shown = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert all(f"{recipe.name} " in shown for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_says_where_it_is_from_and_survives_being_written_out(recipe: Path, job: Path, tmp_path: Path) -> None:
    head = recipe.read_text(encoding="utf-8").partition("\nname: ")[0]
    assert "# Published: " in head and "arXiv:" in head and "# Differs: " in head
    assert f"prefloop run configs/recipes/{recipe.name}" in head
    config = tiny(recipe, job)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config([tmp_path / "run.yaml"]) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_takes_two_steps_on_a_tiny_model(recipe: Path, job: Path, tmp_path: Path) -> None:
    context = Context(RunFolder(tmp_path / "run"), tiny(recipe, job))
    begin(context)
    train(context, 1)
    steps = read_steps(context.run.stage(1, "policy").folder / STEPS)
    assert len(steps) == 2 and all(math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)
    known = AT_START[recipe.stem]
    if known is not None:
        assert steps[0].loss == pytest.approx(known, abs=1e-5)
    if context.config.sampling.n > 1 and context.config.mode == "iterative":
        metrics = json.loads((context.run.stage(1, "pairs").folder / "manifest.json").read_text(encoding="utf-8"))
        assert metrics["rows"] > 0
