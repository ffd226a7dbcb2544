"""Whole runs of a model that thinks: who sees its thoughts, what is counted, and what is trained on."""

import json
from itertools import chain
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole

OPENED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
# Scores are lengths; everything that was shown is kept.
REWARD = """
from pathlib import Path

def reward(prompt, response, answer):
    with open(Path(__file__).with_name("shown.txt"), "a") as file:
        file.write(repr(response) + chr(10))
    return float(len(response))
"""
TRAINING = {"learning_rate": 1.0e-3, "batch_size": 4, "warmup": 0}


def thinker(folder: Path, template: str = OPENED, tokens: tuple[str, ...] = ("<think>", "</think>")) -> Path:
    """A random model that is nearly as likely to end its thought as to say anything else."""
    save_tiny_model(folder, scale=0.01)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([*tokens])
    tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def job(folder: Path, **settings: object) -> Path:
    (folder / "reward.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the cat {n}"}) + "\n" for n in range(10)))
    config = {
        "name": "thinks",
        "policy": {"path": str(folder / "model")},
        "prompts": {"path": str(folder / "prompts.jsonl")},
        "scorer": {"kind": "function", "file": str(folder / "reward.py")},
        "sampler": {"kind": "transformers", "dtype": "float32"},
        "sampling": {"n": 6, "max_tokens": 120},
        "held_out": {"prompts": 3},
        "rounds": 1,
        "training": TRAINING,
        **settings,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


@pytest.mark.parametrize("shown", ["hide", "keep"])
def test_one_online_round_shows_labellers_the_answer_alone_or_all_of_it(
    home: dict[str, str], tmp_path: Path, shown: str
) -> None:
    thinker(tmp_path / "model")
    file = job(tmp_path, mode="iterative", chat={"thinking": shown}, pairing={"rule": "all"})
    done = prefloop(home, "run", file, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(tmp_path / "run")
    groups = [*read_groups(run.stage(1, "samples").folder)]
    sampled = [response for group in groups for response in group.responses]
    ended = [response for response in sampled if not response.in_thought]
    # Some thoughts end and others are cut off, or the test says nothing.
    assert 5 < len(ended) < len(sampled) - 5
    assert all(response.thinking_tokens > 0 for response in sampled)
    seen = (tmp_path / "shown.txt").read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    mark = tokenizer.convert_tokens_to_ids("</think>")
    for response in sampled:
        ids = [*response.token_ids]
        place = ids.index(mark) + 1 if mark in ids else len(ids)
        text = tokenizer.decode(ids[place:], skip_special_tokens=True).lstrip("\n")
        text = text if shown == "hide" else tokenizer.decode(ids, skip_special_tokens=True)
        assert (response.text, response.thinking_tokens) == (text, place) and repr(text) in seen
    told = run.stage(1, "samples").require().metrics
    assert told["thinking_tokens"] == sum(r.thinking_tokens for r in sampled) / len(sampled)
    assert told["answer_tokens"] == sum(len(r.token_ids) - r.thinking_tokens for r in sampled) / len(sampled)
    assert told["unfinished_thinking_rate"] == 1 - len(ended) / len(sampled)
    # Pairs are of answers, and the loss reads all tokens that were sampled.
    pairs = run.stage(1, "pairs").require().metrics
    assert isinstance(dropped := pairs["dropped"], dict)
    assert dropped["unfinished_thinking"] == len(sampled) - len(ended)
    rows = [*read_preference_rows(run.stage(1, "pairs").folder)]
    known = {response.token_ids for response in ended}
    assert rows and all({row.chosen.token_ids, row.rejected.token_ids} <= known for row in rows)
    shown_json = json.loads(prefloop(home, "show", tmp_path / "run", "--json").stdout)
    for metrics in shown_json:
        assert metrics["thinking_tokens"] > 0 and 0 < metrics["unfinished_thinking_rate"] <= 1
        lengths = metrics["response_length"], metrics["answer_tokens"]
        assert (lengths[0] == pytest.approx(lengths[1])) == (shown == "hide")


def test_one_offline_run_trains_on_every_turn_that_differs(home: dict[str, str], tmp_path: Path) -> None:
    thinker(tmp_path / "model")

    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    rows = [
        {
            "chosen": talk(
                f"the cat {n}", "sat</think>on the mat", "sure?", "q</think>a mat", "why?", f"saw</think>it {n}"
            ),
            "rejected": talk(
                f"the cat {n}",
                "ran</think>to the barn",
                "sure?",
                "q</think>a mat",
                "so?",
                "x</think>yes",
                "ok",
                "z</think>y",
            ),
        }
        for n in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"mode": "offline", "pairs": {"path": str(tmp_path / "pairs.jsonl")}, "prompts": None}
    file = job(tmp_path, **settings, training={**TRAINING, "turns": "all_chosen"})
    done = prefloop(home, "run", file, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(tmp_path / "run")
    pairs = [*read_preference_rows(run.stage(1, "pairs").folder)]
    assert len(pairs) == 9
    for pair in pairs:
        # The template leaves thoughts out of later contexts, so each turn has a row of its own.
        assert (len(pair.chosen.rows), len(pair.rejected.rows)) == (2, 3)
        for side in (pair.chosen, pair.rejected):
            assert side.token_ids == tuple(chain.from_iterable(row.ids for row in side.rows))
    metrics = json.loads((run.stage(1, "evaluation").folder / "metrics.json").read_text())
    assert metrics["held_out_accuracy_vs_start"] >= 0 and metrics["held_out_pairs"] == 3
    # Pairs that part early are refused without the setting.
    refused = prefloop(home, "run", job(tmp_path, **settings), "--run-dir", tmp_path / "other")
    assert refused.returncode == 2 and "training.turns: all_chosen" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_closing_mark_that_is_no_token_is_refused_before_anything_is_made(
    home: dict[str, str], tmp_path: Path
) -> None:
    thinker(tmp_path / "model", tokens=("<think>",))
    done = prefloop(home, "run", job(tmp_path, mode="iterative"), "--run-dir", tmp_path / "run")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "chat.thinking: hide" in done.stderr and "'</think>'" in done.stderr and "keep" in done.stderr
    assert "Traceback" not in done.stderr
