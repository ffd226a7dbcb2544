"""A running mean of policies stored in 16 bits, round by round: taken from float32 weights, which stay while needed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from flows.commands.verify import verify_run
from flows.run_folder.redo import set_aside
from flows.run_folder.retention import free_room
from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training.policies import policy_to_train
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_text
from tests.support.finished_run import evaluate
from tests.support.tiny_run import begin, make_job, open_context, train

EMA = ("training.reference=ema", "training.reference_decay=0.9", "training.dtype=bfloat16", "gate=null", "rounds=3")
TINY = "training.learning_rate=5.0e-7"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("job"))
    LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(folder / "model")
    return folder


def started(job: Path, root: Path, *settings: str) -> Context:
    context = open_context(job, root, "offline", *EMA, *settings)
    context.run.root.mkdir(parents=True, exist_ok=True)
    write_text(context.run.config_file, dump_config(context.config))
    begin(context)
    return context


def widest(context: Context, round_: int, name: str) -> torch.Tensor:
    return load_file(context.run.stage(round_, name).folder / "masters" / "model.safetensors")[NAME]


def with_masters(context: Context) -> list[str]:
    return sorted(s.title for s in context.run.stages() if (s.folder / "masters" / "model.safetensors").is_file())


def test_the_mean_moves_by_steps_that_16_bits_lose_and_both_float32_weights_stay_for_the_next_round(
    job: Path, tmp_path: Path
) -> None:
    context = started(job, tmp_path / "run", TINY)
    expected = load_file(job / "model" / "model.safetensors")[NAME].double()
    start = expected
    for round_ in (1, 2, 3):
        train(context, round_)
        expected = 0.9 * expected + 0.1 * widest(context, round_, "policy").double()
        free_room(context.run, context.config)
        assert with_masters(context) == [f"round_{round_:03d}/average", f"round_{round_:03d}/policy"]
    mean = widest(context, 3, "average").double()
    assert 0 < (expected - start).abs().mean() < 1e-5
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-7)
    assert abs(float((mean - expected).mean())) < 0.01 * float((expected - start).abs().mean())
    rounded = load_file(context.run.stage(3, "average").folder / "model.safetensors")[NAME]
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, mean.float().bfloat16())
    assert verify_run(context.run.root).faults == []


def test_float32_weights_stay_until_the_mean_is_made(job: Path, tmp_path: Path) -> None:
    context = started(job, tmp_path / "run", TINY)
    train(context, 1)
    free_room(context.run, context.config)
    context.run.stage(1, "average").folder.rename(tmp_path / "average")
    # As after a kill between a policy and its mean.
    free_room(context.run, context.config)
    assert with_masters(context) == ["round_001/policy"]
    (tmp_path / "average").rename(context.run.stage(1, "average").folder)
    train(context, 2)
    (context.run.stage(2, "average").folder).rename(tmp_path / "average")
    free_room(context.run, context.config)
    assert with_masters(context) == ["round_001/average", "round_002/policy"]
    run_stage(context, 2, "average")
    free_room(context.run, context.config)
    assert with_masters(context) == ["round_002/average", "round_002/policy"]


@pytest.fixture(scope="module")
def freed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Two rounds with evaluations, after which only float32 weights of the first were removed."""
    context = started(job, tmp_path_factory.mktemp("freed") / "run", TINY)
    evaluate(context, 0)
    for round_ in (1, 2):
        train(context, round_)
        evaluate(context, round_)
    free_room(context.run, context.config)
    assert with_masters(context) == ["round_002/average", "round_002/policy"]
    return context


@pytest.mark.parametrize(("stage", "needs"), [("policy", "policy"), ("pairs", "policy"), ("reference", "policy")])
def test_a_stage_that_reads_removed_float32_weights_is_not_made_again_alone(
    freed: Context, stage: str, needs: str
) -> None:
    with pytest.raises(UserError, match=f"reads round_001/{needs}, whose files were removed .* --from 1:{needs} makes"):
        set_aside(freed.run, freed.config, 2, stage)


def test_a_mean_of_removed_float32_weights_is_refused(freed: Context, tmp_path: Path) -> None:
    moved = freed.run.stage(2, "average").folder
    moved.rename(tmp_path / "average")
    try:
        with pytest.raises(RunError, match=r"float32 weights of round 1 were removed .* --from 1:average makes them"):
            run_stage(freed, 2, "average")
    finally:
        (tmp_path / "average").rename(moved)


def test_weights_stepped_in_16_bits_need_no_float32_ones(freed: Context) -> None:
    narrow = freed.config.training.model_copy(update={"weights": "bfloat16"})
    other = Context(freed.run, freed.config.model_copy(update={"training": narrow}))
    assert policy_to_train(other, 2).dtype == torch.bfloat16
    with pytest.raises(RunError, match="float32 weights of round 1 were removed"):
        policy_to_train(freed, 2)


def test_stages_that_read_rounded_weights_alone_are_made_again(freed: Context) -> None:
    assert set_aside(freed.run, freed.config, 1, "evaluation") == ["round_001/evaluation", "round_002/evaluation"]
    for round_ in (1, 2):
        run_stage(freed, round_, "evaluation")
    assert verify_run(freed.run.root).faults == []


@pytest.mark.parametrize("name", ["reference", "evaluation"])
def test_how_frozen_weights_are_held_is_part_of_the_key(job: Path, tmp_path: Path, name: str) -> None:
    """Full training in float32 passes holds them in float32, an adapter in the bits of the file."""
    plain = ("training.dtype=float32", "training.reference=previous")
    context = started(job, tmp_path / "run", *plain)
    evaluate(context, 0)
    train(context, 1)
    evaluate(context, 1)

    def key(*settings: str) -> str:
        config = open_context(job, tmp_path / "run", "offline", *EMA, *plain, *settings).config
        return stage_key(context.run, config, 1, name).digest

    assert key() != key("training.lora={}")
    # What a policy.dtype says is in the start policy's key, which earlier run folders have without more.
    assert key("policy.dtype=float32") == key("policy.dtype=float32", "training.lora={}")
