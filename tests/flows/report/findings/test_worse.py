"""Prompts that got worse are counted and told apart by what they have in common."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from flows.report.findings.prompt_changes import worse_in
from flows.report.findings.worse import PromptChange, worse_prompts
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT

FOLDERS = ROOT / "tests" / "fixtures" / "earlier_version" / "run_folders"


def change(number: int, gain: float, turns: int = 1, source: str = "") -> PromptChange:
    text = f"prompt {number} " + "x" * number
    return PromptChange(text, 1.0, 1.0 + gain, len(text), turns, source)


def test_what_fell_is_counted_with_its_size_the_worst_first() -> None:
    found = worse_prompts([change(1, -0.5), change(2, -1.5), change(3, 0.0), change(4, 2.0)], 3, "reward")
    assert found is not None and (found.prompts, found.worse, found.better, found.fall) == (4, 2, 1, 1.0)
    assert [one.change for one in found.examples] == [-1.5, -0.5] and not found.traits
    assert found.sentences == (
        "2 of 4 held-out prompts (50%) have a lower reward in round 3 than at the start, by 1 on average; 1 has a "
        "higher one. There are too few to tell what they have in common."
    )


def test_a_trait_that_most_of_them_share_stands_out() -> None:
    rows = [change(n, -1.0 if n >= 40 else 1.0, source="ab"[n % 2]) for n in range(60)]
    found = worse_prompts(rows, 1, "margin")
    assert found is not None and [trait.name for trait in found.traits if trait.stands_out] == ["over 49 letters"]
    longest = next(trait for trait in found.traits if trait.stands_out)
    assert longest.prompts == 20 and longest.worse.mean == 1.0 and longest.change == -1.0
    assert "over 49 letters: 100% got worse, of the others 0%" in found.sentences
    turns = worse_prompts([replace(one, turns=1 + 2 * (one.change < 0)) for one in rows], 1, "margin")
    assert turns is not None and "three or more turns: 100% got worse" in turns.sentences
    sources = worse_prompts([replace(one, source="code" if one.change < 0 else "") for one in rows], 1, "margin")
    assert sources is not None and "source code: 100% got worse" in sources.sentences


def test_chance_does_not_stand_out() -> None:
    found = worse_prompts([change(n, -1.0 if n % 3 else 1.0, turns=1 + n % 2) for n in range(60)], 1, "reward")
    assert found is not None and len(found.traits) == 5
    assert found.sentences.endswith("No length, number of turns or source stands out.")


def test_nothing_worse_and_nothing_at_all() -> None:
    found = worse_prompts([change(1, 1.0)], 2, "reward")
    assert found is not None and found.sentences.startswith("None of 1 held-out prompts has a lower reward")
    assert found.fall == 0.0 and worse_prompts([], 2, "reward") is None


def test_rewards_of_a_run_are_compared_with_the_start() -> None:
    found = worse_in(RunFolder(FOLDERS / "iterative"), 1)
    assert found is not None and (found.measure, found.prompts, found.worse, found.fall) == ("reward", 4, 2, 1.0)
    assert found.examples[0].prompt == "the dog 4" and found.examples[0].source == "prompts.jsonl"
    assert worse_in(RunFolder(FOLDERS / "iterative"), 0) is None


def test_without_a_labeller_margins_of_held_out_pairs_are_compared(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "offline", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "round_001" / "evaluation" / "held_out_margins.json"
    margins = json.loads(file.read_text())
    file.write_text(json.dumps({key: -0.25 if place == 1 else 1.0 for place, key in enumerate(margins)}))
    found = worse_in(RunFolder(tmp_path), 1)
    assert found is not None and (found.measure, found.prompts, found.worse) == ("margin", len(margins), 1)
    assert found.examples[0].after == -0.25
    # A pair that was left out has no margin, and then the order tells no more whose the margins are.
    kept = dict(list(margins.items())[1:])
    file.write_text(json.dumps(kept))
    assert worse_in(RunFolder(tmp_path), 1) is None
    prompt = next(read_groups(tmp_path / "round_001" / "evaluation" / "sampled")).prompt.id
    for round_ in (0, 1):
        told = tmp_path / f"round_{round_:03d}" / "evaluation" / "held_out_prompts.json"
        told.write_text(json.dumps(dict.fromkeys(margins, prompt)))
    found = worse_in(RunFolder(tmp_path), 1)
    assert found is not None and found.prompts == 1
