"""Two models for real: IPO-MD with vLLM and with transformers; pairs of a strong and a weak policy, exported."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.whole
MILD = ("training.learning_rate=3e-4", "training.epochs=1", "gate=null")
IPO_MD = (*MILD, "loss.preset=ipo", "training.reference=fixed", "sampling.mixture={reference: start, weight: 0.125}")


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_the_second_round_samples_from_policy_and_start_and_checks_both(
    home: dict[str, str], loop_config: Path, tmp_path: Path, kind: str
) -> None:
    engine = [] if kind == "vllm" else ["sampler={kind: transformers, dtype: float32}"]
    done = prefloop(home, "run", loop_config, *IPO_MD, *engine, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(tmp_path / "run")
    first, second = (run.stage(round_, "samples").require().metrics for round_ in (1, 2))
    assert "mixture" not in first
    told: Any = second["mixture"]
    assert (told["reference"], told["weight"], told["of"]) == ("start", 0.125, "round_000/policy")
    handshake: Any = second["weight_handshake"]
    assert handshake["max_difference"] < 2e-3
    if kind == "vllm":
        assert 0.5 < told["effective_share"] < 1 and told["weight_handshake"]["max_difference"] < 2e-3
        assert not (run.stage(2, "samples").folder / "proposals").exists()
    else:
        assert handshake["mixed_difference"] < 2e-3
    sampled = {r.token_ids for group in read_groups(run.stage(2, "samples").folder) for r in group.responses}
    assert all(len(group.responses) == 4 for group in read_groups(run.stage(2, "samples").folder))
    pairs = list(read_preference_rows(run.stage(2, "pairs").folder))
    assert len(pairs) > 10 and all({p.chosen.token_ids, p.rejected.token_ids} <= sampled for p in pairs)  # type: ignore[union-attr]
    assert prefloop(home, "verify", tmp_path / "run").returncode == 0
    again = prefloop(home, "run", loop_config, *IPO_MD, *engine, "--run-dir", tmp_path / "run")
    assert again.returncode == 0 and run.stage(2, "samples").require().metrics == second


def test_pairs_of_two_policies_are_trained_on_without_labels_and_exported(
    home: dict[str, str], loop_config: Path, tmp_path: Path
) -> None:
    weak = save_tiny_model(tmp_path / "weak", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(weak)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"
    tokenizer.save_pretrained(weak)
    settings = [
        "scorer=null",
        f"pairing={{rule: strong_weak, second: {{path: {weak}}}}}",
        "sampling.n=1",
        "rounds=1",
        MILD[0],
    ]
    done = prefloop(home, "run", loop_config, *settings, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(tmp_path / "run")
    told: Any = run.stage(1, "second_samples").require().metrics
    assert told["encoded_anew"] == 40 and told["weight_handshake"]["max_difference"] < 2e-3
    assert not run.stage(1, "labels").folder.exists()
    pairs = list(read_preference_rows(run.stage(1, "pairs").folder))
    assert len(pairs) > 20
    file = tmp_path / "pairs.jsonl"
    assert prefloop(home, "pairs", tmp_path / "run", "--round", "1", "--export", file).returncode == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [(p.chosen.text, p.rejected.text) for p in pairs]  # type: ignore[union-attr]
    offline = [
        "mode=offline",
        "scorer=null",
        "prompts=null",
        "rounds=1",
        f"pairs={{path: {file}}}",
        "held_out.prompts=4",
    ]
    again = prefloop(home, "run", loop_config, *offline, *MILD, "--run-dir", tmp_path / "offline")
    assert again.returncode == 0, again.stderr[-3000:]
    made = RunFolder(tmp_path / "offline").stage(1, "pairs").require()
    assert made.rows == len(rows) - 4
    assert prefloop(home, "verify", tmp_path / "run").returncode == 0
