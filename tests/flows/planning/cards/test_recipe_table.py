"""The memory of the recipes for an 8B: the table in configs/README.md is what ``plan --cards`` works out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.planning.cards import survey as planning
from flows.planning.cards.card_table import gb
from flows.planning.cards.fitting import parse_cards, whole_of
from flows.planning.cards.survey import CardPlan, plan_cards
from tests.support.places import CONFIGS, ROOT

README = CONFIGS / "README.md"
SHAPE = ROOT / "tests/fixtures/shapes/llama_8b"
CARDS = "24,80,141,8x80"
VARIANTS = {"all weights": "training.lora=null", "adapter": "training.lora={rank: 16}"}


def planned(recipe: Path, reward: Path, setting: str) -> CardPlan:
    text = recipe.read_text(encoding="utf-8")
    given = [f"policy.path={SHAPE}", setting]
    given.append("pairs.path=p.jsonl" if "mode: offline" in text else "prompts.path=p.jsonl")
    given += [f"scorer.path={reward}"] if "-model  #" in text else []
    return plan_cards([recipe], given, parse_cards(CARDS))


def rows(reward: Path) -> Iterator[str]:
    head = ["recipe", "trained", "tokens a pass", *(f"{card}" for card in parse_cards(CARDS)), "other stages"]
    yield "| " + " | ".join(head) + " |"
    yield "| --- | --- |" + " ---: |" * (len(head) - 3) + " --- |"
    for recipe in sorted((CONFIGS / "recipes").glob("*.yaml")):
        for trained, setting in VARIANTS.items():
            plan = planned(recipe, reward, setting)
            needs = [whole_of(parts) for parts in plan.rows[0].recomputed]
            fits = [plan.training_fits(index) for index in range(len(needs))]
            cells = [f"**{gb(need)}**" if fit else gb(need) for need, fit in zip(needs, fits, strict=True)]
            others = ", ".join(f"{name} {gb(whole_of(parts))}" for name, parts in plan.others.items())
            yield "| " + " | ".join([recipe.stem, trained, f"{plan.pass_.tokens:,}", *cells, others]) + " |"


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An 8B reward model, as far as its config says; and no trainings beside the config's own are worked out."""
    monkeypatch.setattr(planning, "RECIPES", ())
    plain = json.loads((SHAPE / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(plain | {"num_labels": 1, "pad_token_id": 0}), encoding="utf-8")
    return tmp_path


@pytest.mark.whole
def test_the_readme_has_the_table_that_the_arithmetic_gives(reward: Path) -> None:
    shown = README.read_text(encoding="utf-8").partition("<!-- recipes -->\n")[2].partition("<!-- /recipes -->")[0]
    assert shown == "\n".join(rows(reward)) + "\n"


def test_the_table_has_each_recipe_with_all_weights_and_with_an_adapter(reward: Path) -> None:
    shown = README.read_text(encoding="utf-8").partition("<!-- recipes -->\n")[2].splitlines()[2:]
    found = [tuple(line.strip("| ").split(" | ")[:2]) for line in shown if line.startswith("| ")]
    names = [recipe.stem for recipe in sorted((CONFIGS / "recipes").glob("*.yaml"))]
    assert found == [(name, trained) for name in names for trained in VARIANTS]
