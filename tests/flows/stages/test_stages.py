"""Stages of an offline run in this process: no Prefect, no sampler."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.run_folder.ancestry import reference_round
from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import load_config
from pipeline.data.run_data import open_data
from pipeline.errors import RunError, UserError
from pipeline.storage.rows import read_preference_rows, read_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import read_steps
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_tiny_model(folder / "model")
    rows = [
        {"prompt": f"a dog ran {number}", "chosen": f"to the old barn {number}", "rejected": f"mat mat {number}"}
        for number in range(36)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(
        f"""
name: sliced
mode: offline
rounds: 3
policy: {{path: {folder / "model"}}}
pairs: {{path: {folder / "pairs.jsonl"}}}
held_out: {{prompts: 6}}
training: {{learning_rate: 1.0e-3, batch_size: 5, micro_batch_size: 5}}
"""
    )
    return folder


def start(job: Path, root: Path, *settings: str) -> Context:
    config = load_config([job / "run.yaml"], settings)
    context = Context(RunFolder(root), config)
    run_stage(context, 0, "data")
    run_stage(context, 0, "policy")
    return context


def train(context: Context, round_: int) -> None:
    for name in ("pairs", "reference", "policy"):
        run_stage(context, round_, name)
    if context.config.training.reference == "ema":
        run_stage(context, round_, "average")


def weights(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]


def test_a_run_that_diverges_stops_and_keeps_rows_and_weights(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path, "training.learning_rate=1e30")
    with pytest.raises(RunError, match="round 1, policy: step 2 of 2: loss") as caught:
        train(context, 1)
    partial = context.run.stage(1, "policy").partial
    kept = {row["id"] for row in read_rows(partial)}
    assert kept and kept <= {pair.id for pair in read_preference_rows(context.run.stage(1, "pairs").folder)}
    assert str(partial / "offending.parquet") in str(caught.value)
    assert list((partial / "checkpoints").rglob("*.safetensors"))
    assert context.run.stage(1, "policy").manifest() is None


def test_the_reference_follows_its_rule(job: Path, tmp_path: Path) -> None:
    def rounds(*settings: str) -> list[int]:
        config = load_config([job / "run.yaml"], settings)
        return [reference_round(RunFolder(tmp_path), config, round_) for round_ in (1, 2, 3, 4, 5)]

    assert rounds("training.reference=fixed") == [0, 0, 0, 0, 0]
    assert rounds("training.reference=previous") == [0, 1, 2, 3, 4]
    assert rounds("training.reference=every_n", "training.reference_every=2") == [0, 0, 2, 2, 4]


def test_an_averaged_reference_is_the_average_of_policies(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path, "training.reference=ema", "training.reference_decay=0.75")
    train(context, 1)
    train(context, 2)
    run = context.run
    first = 0.75 * weights(job / "model") + 0.25 * weights(run.stage(1, "policy").folder)
    second = 0.75 * first + 0.25 * weights(run.stage(2, "policy").folder)
    torch.testing.assert_close(weights(run.stage(2, "average").folder), second)
    assert run.stage(2, "reference").require().metrics["reference"] == "round_001/average"
    assert run.stage(1, "reference").require().metrics["reference"] == "round_000/policy"


@pytest.mark.parametrize(
    "settings",
    [
        ("training.lora={rank: 4}",),
        ("training.lora={rank: 4, lifetime: round}",),
        ("training.dtype=bfloat16",),
        ("training.gradient_checkpointing=true",),
        ("training.micro_batch_size=2",),
        ("training.schedule=constant", "training.warmup=0", "training.optimiser_state=carried"),
    ],
)
def test_every_way_of_training_raises_chosen_over_rejected(
    job: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    context = start(job, tmp_path, "rounds=1", "training.epochs=4", *settings)
    train(context, 1)
    first, *_, last = read_steps(context.run.stage(1, "policy").folder / "steps.jsonl")
    assert first.margin is not None and last.margin is not None and last.margin > first.margin + 0.05
    names = {file.name for file in context.run.stage(1, "policy").folder.iterdir()}
    whole = {"config.json", "model.safetensors", "tokenizer.json"}
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    written, others = (adapter, whole) if settings == ("training.lora={rank: 4}",) else (whole, adapter)
    assert written | {"probe.json", "manifest.json"} <= names
    assert not names & (others | {"checkpoints"})


def test_an_untrained_start_is_not_copied(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path)
    assert context.policy_path(0) == job / "model"
    assert {file.name for file in context.run.stage(0, "policy").folder.iterdir()} == {"probe.json", "manifest.json"}


def test_a_model_that_changed_under_a_run_is_noticed(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path / "run")
    other = save_tiny_model(tmp_path / "other", seed=1)
    policy = context.config.policy.model_copy(update={"path": str(other)})
    moved = Context(context.run, context.config.model_copy(update={"policy": policy}))
    with pytest.raises(UserError, match=r"policy\.path"):
        run_stage(moved, 0, "policy")


def test_slices_of_the_pairs_cover_the_file_once(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path)
    for round_ in (1, 2, 3):
        run_stage(context, round_, "pairs")
    found = [
        pair.id for round_ in (1, 2, 3) for pair in read_preference_rows(context.run.stage(round_, "pairs").folder)
    ]
    assert len(found) == len(set(found)) == 30


def test_held_out_pairs_may_come_from_a_file_of_their_own(job: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"a cat sat {number}", "chosen": "on the mat", "rejected": "barn"} for number in range(4)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config([job / "run.yaml"], [f"held_out.path={tmp_path / 'held.jsonl'}"])
    found = open_data(config)
    tables = Counter(table for table, _ in found.preferences())
    assert tables == {"pairs": 36, "held_out_pairs": 4} and len(found.split.held_out) == 4


def test_rows_that_limits_drop_are_in_no_table_and_the_choice_is_in_the_key(job: Path, tmp_path: Path) -> None:
    rows = (job / "pairs.jsonl").read_text().splitlines()
    odd = [json.dumps({"prompt": f"odd {n}", "chosen": "the </s> mat", "rejected": "barn"}) for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*odd, *rows, "not json"]))
    dropping = [f"pairs.path={tmp_path / 'pairs.jsonl'}", "limits={doubled_eos: drop, malformed: drop}"]
    context = start(job, tmp_path / "run", *dropping)
    stage = context.run.stage(0, "data")
    metrics = stage.require().metrics
    assert metrics["dropped"] == {"pairs": {"doubled_eos": 4, "malformed": 1}}
    assert (metrics["pairs"], metrics["held_out"], metrics["held_out_pairs"]) == (30, 6, 6)
    assert not any(
        "odd" in str(row) for name in ("prompts", "held_out", "pairs") for row in read_rows(stage.folder / name)
    )
    for settings, added in (
        (["limits.doubled_eos=1"], {}),
        (["limits.empty=drop"], {"dropped": ["empty"]}),
        (["limits.doubled_eos=drop"], {"dropped": ["doubled_eos"], "tokens": True}),
    ):
        plain = stage_key(context.run, load_config([job / "run.yaml"]), 0, "data")
        key = stage_key(context.run, load_config([job / "run.yaml"], settings), 0, "data")
        more = {name: value for name, value in key.config.items() if name not in plain.config}
        assert more.pop("tokens", None) is not None or "tokens" not in added
        assert more == {name: value for name, value in added.items() if name != "tokens"}
        assert (key.digest == plain.digest) is not bool(added)


def test_evaluation_samples_stop_where_training_samples_do(job: Path, tmp_path: Path) -> None:
    context = start(job, tmp_path)
    stopped = load_config([job / "run.yaml"], ["sampling.stop=[END]"])
    keys = [stage_key(context.run, config, 0, "evaluation_samples") for config in (context.config, stopped)]
    assert keys[1].config["sampling.stop"] == ["END"] and keys[0].digest != keys[1].digest
