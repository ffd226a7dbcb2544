"""Reward models trained from nothing on real comparisons, against simple rules. About two minutes on one core."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ScratchPolicy
from pipeline.models.scratch import make_policy
from tests.support.places import DATA, ROOT

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside this checkout"),
]
Rows = list[dict[str, Any]]


def read(name: str) -> Rows:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def train(tmp_path: Path, texts: list[str], *settings: str, **sections: Any) -> dict[str, Any]:
    """Metrics of a reward model that starts from a random language model; ``sections`` of its config."""
    make_policy(texts, ScratchPolicy(vocab_size=2000, hidden_size=64, layers=1, context=1024), 0, tmp_path / "start")
    config = {"name": "reward", "model": {"path": str(tmp_path / "start")}, **sections}
    (tmp_path / "reward.yaml").write_text(json.dumps(config), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "reward-model", "reward.yaml", *settings, "--run-dir", "reward"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    metrics: dict[str, Any] = json.loads((tmp_path / "reward" / "metrics.json").read_text())
    return metrics


def polarity_pairs(sentences: Rows, repeats: int, draw: random.Random, first: int) -> Rows:
    """A good beside a bad sentence, each sentence ``repeats`` times; the numbers keep prompts apart."""
    sides: dict[str, list[str]] = {"pos": [], "neg": []}
    for row in sentences:
        sides[row["label"]].append(row["text"])
    found: Rows = []
    for _ in range(repeats):
        for texts in sides.values():
            draw.shuffle(texts)
        for good, bad in zip(sides["pos"], sides["neg"], strict=False):
            found.append({"prompt": f"Film {first + len(found)}:", "chosen": good, "rejected": bad})
    return found


def lexicon_accuracy(pairs: Rows) -> float:
    """Of more good and fewer bad words; half a point where they are as many."""
    worth = {row["word"]: 1 if row["label"] == "pos" else -1 for row in read("sentiment/opinion_lexicon.jsonl")}
    right = 0.0
    for pair in pairs:
        chosen, rejected = (sum(worth.get(w, 0) for w in pair[side].split()) for side in ("chosen", "rejected"))
        right += 0.5 if chosen == rejected else float(chosen > rejected)
    return right / len(pairs)


def test_a_reward_model_of_sentence_polarity_beats_the_lexicon(tmp_path: Path) -> None:
    draw = random.Random(0)
    sentences = read("sentiment/sentence_polarity.jsonl")
    draw.shuffle(sentences)
    training, held_out = sentences[2000:], sentences[:2000]
    pairs, held_out_pairs = polarity_pairs(training, 3, draw, 0), polarity_pairs(held_out, 1, draw, 10**6)
    write(tmp_path / "pairs.jsonl", pairs)
    write(tmp_path / "held_out.jsonl", held_out_pairs)
    metrics = train(
        tmp_path,
        [row["text"] for row in training],
        pairs={"path": "pairs.jsonl"},
        held_out={"path": "held_out.jsonl", "prompts": 5000},
        training={"learning_rate": 1e-3, "epochs": 1, "weight_decay": 0.1},
    )
    found, lexicon = metrics["held_out"], lexicon_accuracy(held_out_pairs)
    print(json.dumps({"lexicon": lexicon, **found}, indent=1))
    assert found["pairs"] == len(held_out_pairs)
    assert found["accuracy"] > lexicon + 2 * found["accuracy_error"]
    assert found["above_longer_wins"] > 0.2
    # Below the entropy of a coin, though surer than it should be after seeing each sentence three times.
    assert found["loss"] < 0.5 and found["ece"] < 0.1


def test_ties_among_human_votes_are_predicted_about_as_often_as_they_come(tmp_path: Path) -> None:
    pairs = [row for row in map(voted, read("pairs/pandalm_test_human3.jsonl")) if row["chosen"] != row["rejected"]]
    write(tmp_path / "pairs.jsonl", pairs)
    metrics = train(
        tmp_path,
        [row[name] for row in pairs for name in ("prompt", "chosen", "rejected")],
        pairs={"path": "pairs.jsonl"},
        held_out={"prompts": 40},
        ties="rao_kupper",
        training={"learning_rate": 1e-3, "epochs": 3},
    )
    found = metrics["held_out"]
    print(json.dumps(metrics, indent=1))
    # Some 760 pairs do not teach a model from nothing more than that longer answers tend to win.
    assert found["ties"] > 10 and found["accuracy"] > 0.55
    assert abs(found["tie_probability"] - found["tie_share"]) < 0.05


def voted(row: dict[str, Any]) -> dict[str, Any]:
    """The pair as most of the three people see it; a tie where most see none better, or no two agree."""
    sides = (row["response2"], row["response1"]) if row["majority"] == 2 else (row["response1"], row["response2"])
    prompt = f"{row['instruction']}\n{row['input']}".strip()
    return {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "soft_label": 1.0 if row["majority"] else 0.5}
