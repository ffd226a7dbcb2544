"""What ``plan --cards`` prints, and the table in the README of training."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig

from flows.__main__ import main
from flows.planning.cards.card_table import gb
from flows.planning.cards.fitting import parse_cards, whole_of
from flows.planning.cards.recipes import RECIPES
from flows.planning.cards.survey import USUAL_LORA, survey
from flows.planning.cards.traced import PassShape
from tests.support.places import ROOT
from tests.support.small_config import write_small_config

README = ROOT / "pipeline/training/README.md"
SHAPES = ROOT / "tests/fixtures/shapes"
ASKED = "24,80,141,8x80"


def table() -> Iterator[str]:
    cards = parse_cards(ASKED)
    head = ["training", "tokens", "weights", "gradients", "optimiser", "16-bit copies", "activations", *map(str, cards)]
    for name, title in (("llama_8b", "8B"), ("llama_70b", "70B")):
        yield f"**{title}**, with checkpointing (activations without it in brackets; **bold** fits):\n"
        yield "| " + " | ".join(head) + " |"
        yield "| --- |" + " ---: |" * (len(head) - 1)
        for length in (1024, 2048):
            pair = PassShape(1, length // 2, length // 2, packed=False)
            shape = AutoConfig.from_pretrained(SHAPES / name)
            for row in survey(shape, RECIPES, USUAL_LORA, pair, cards):
                parts, kept = row.recomputed[0], row.kept[0]
                named = [gb(parts.get(part, 0)) for part in head[2:6]]
                sums = [
                    f"**{gb(whole_of(p))}**" if whole_of(p) <= c.size else gb(whole_of(p))
                    for p, c in zip(row.recomputed, cards, strict=True)
                ]
                activations = f"{gb(parts['activations'])} ({gb(kept['activations'])})"
                yield "| " + " | ".join([row.recipe.name, f"{length:,}", *named, activations, *sums]) + " |"
        yield ""


@pytest.mark.whole
def test_the_readme_has_the_table_that_the_arithmetic_gives() -> None:
    shown = README.read_text().partition("<!-- cards -->\n")[2].partition("<!-- /cards -->")[0]
    assert shown == "\n".join(table()) + "\n"


def cards_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["prefloop", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out + shown.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    # No tokenizer, no weights and no data.
    model = tmp_path / "model"
    model.mkdir()
    plain = json.loads((SHAPES / "llama_8b/config.json").read_text()) | {"num_hidden_layers": 2, "vocab_size": 8000}
    (model / "config.json").write_text(json.dumps(plain))
    return write_small_config(tmp_path, model, "sampling: {max_tokens: 16}")


def test_a_plan_for_cards_needs_only_a_config(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = cards_of(monkeypatch, capsys, config, "--cards", "80,24")
    assert (
        code == 0
        and "this config on 80 GB: fits\nthis config on 24 GB: does not fit" in shown
        and "QLoRA, 4 bits" in shown
    )
    code, shown = cards_of(monkeypatch, capsys, config, "--cards", "6", "--json")
    plan = json.loads(shown)
    assert code == 1 and not plan["fits"]
    assert plan["trainings"]["this config"]["no checkpointing"][0]["optimiser"] == 8 * (
        2 * 8000 * 4096 + 436_207_616 + 5 * 4096
    )
    assert plan["disk_gb_per_second"] == 2
    code, shown = cards_of(monkeypatch, capsys, config, "--cards", "6")
    assert "does not fit: set training.gradient_checkpointing: true, add a section training.lora" in shown


@pytest.mark.whole
@pytest.mark.parametrize("name", ["online", "offline"])
def test_the_example_configs_fit_an_8b_on_a_card_of_24_gb(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "reward"
    reward.mkdir()
    plain = json.loads((SHAPES / "llama_8b/config.json").read_text())
    (reward / "config.json").write_text(json.dumps(plain | {"num_labels": 1, "pad_token_id": 0}))
    paths = [f"policy.path={SHAPES / 'llama_8b'}", "prompts.path=p.jsonl", f"scorer.path={reward}"]
    given = paths if name == "online" else [paths[0], "pairs.path=p.jsonl"]
    code, shown = cards_of(monkeypatch, capsys, ROOT / f"configs/{name}.yaml", *given, "--cards", "24")
    assert code == 0 and "this config on 24 GB: fits" in shown
    assert ("sampling: " in shown and "labelling: " in shown) == (name == "online")
    code, shown = cards_of(
        monkeypatch, capsys, ROOT / f"configs/{name}.yaml", *given, "training.lora=null", "--cards", "24"
    )
    assert code == 1 and "this config on 24 GB: does not fit: add a section training.lora" in shown


def test_a_card_that_is_none_is_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = cards_of(monkeypatch, capsys, config, "--cards", "big")
    assert code == 2 and "--cards: big: must be GB" in shown


def test_seconds_of_a_rounds_files_are_at_the_speed_that_is_asked(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (config, "training.lora={rank: 16}", "--cards", "24", "--disk-gb-per-second", "0.5")
    code, shown = cards_of(monkeypatch, capsys, *given)
    assert code == 0 and "files of a round at 0.5 GB/s" in shown
    code, shown = cards_of(monkeypatch, capsys, *given, "--json")
    for one in json.loads(shown)["trainings"].values():
        assert one["seconds"] == {kind: sum(one[kind].values()) / 0.5e9 for kind in ("written", "read")}
    for wrong in ("0", "-1", "nan", "fast"):
        code, shown = cards_of(monkeypatch, capsys, *given[:-1], wrong)
        assert code == 2 and "--disk-gb-per-second" in shown, wrong
