"""Adapters from round to round: on weights of 16, 8 or 4 bits, somebody's own, killed and resumed, of another model."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from flows.commands.verify import verify_run
from flows.run_folder.retention import free_room
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training.policies import policy_to_train, reference_model, require_carried_state
from pipeline.config import Lora
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.models.policy import load_policy, score_sequences
from pipeline.models.weights.adapter_folder import base_of, require_base
from pipeline.models.weights.held_weights import held_bytes
from pipeline.models.weights.weight_format import stored_dtype
from pipeline.storage.atomic import write_text
from pipeline.storage.integrity import require_intact
from pipeline.training.step_log import read_steps
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_run import begin, make_job, open_context, supply, train

LORA = "training.lora={rank: 4}"
NF4, INT8 = "policy.quantisation={bits: 4}", "policy.quantisation={bits: 8}"
IDS = [[9, 20, 33, 41, 50, 61]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model stored in bfloat16."""
    folder = make_job(tmp_path_factory.mktemp("job"))
    LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(folder / "model")
    return folder


def two_rounds(job: Path, root: Path, mode: str, *settings: str) -> Context:
    context = open_context(job, root / "run", mode, *settings)
    write_text_config(context)
    begin(context)
    for round_ in (1, 2):
        train(context, round_)
    return context


def write_text_config(context: Context) -> None:
    context.run.root.mkdir(parents=True, exist_ok=True)
    write_text(context.run.config_file, dump_config(context.config))


def tensors(context: Context, round_: int) -> dict[str, torch.Tensor]:
    return load_file(context.run.stage(round_, "policy").folder / "adapter_model.safetensors")


@pytest.mark.parametrize("bits", [NF4, INT8, "policy.quantisation=null"], ids=["4 bits", "8 bits", "16 bits"])
@pytest.mark.parametrize("mode", ["offline", "iterative"])
def test_one_adapter_is_trained_on_and_saved_alone(job: Path, tmp_path: Path, mode: str, bits: str) -> None:
    context = two_rounds(job, tmp_path, mode, LORA, bits, "training.optimiser_state=carried")
    whole = (job / "model" / "model.safetensors").stat().st_size
    for round_ in (1, 2):
        folder = context.run.stage(round_, "policy").folder
        first, *_, last = read_steps(folder / "steps.jsonl")
        assert first.loss == pytest.approx(math.log(2), abs=1e-4), "policy and reference are the same at first"
        assert last.loss < first.loss - 0.05
        weights = folder / "adapter_model.safetensors"
        assert weights.stat().st_size * 5 < whole and [*folder.glob("*.safetensors")] == [weights]
        assert base_of(folder) == str(job / "model")
        assert {t.dtype for t in tensors(context, round_).values()} == {torch.float32}
    steps = load_file(context.run.stage(2, "policy").folder / "optimiser" / "state.safetensors")
    counts = {float(value) for name, value in steps.items() if name.endswith(".step")}
    taken = sum(len(read_steps(context.run.stage(r, "policy").folder / "steps.jsonl")) for r in (1, 2))
    assert counts == {taken}, "AdamW's count goes on from round to round"
    kept = tensors(context, 1)
    moved = [name for name, value in tensors(context, 2).items() if not torch.equal(value, kept[name])]
    assert len(moved) == len(kept), "round 2 goes on with round 1's adapter"
    assert verify_run(context.run.root).faults == []


def test_a_base_that_changes_or_goes_is_noticed_by_verify_and_by_the_next_stage(job: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", job / "model", copy], check=True)
    context = two_rounds(job, tmp_path, "offline", LORA, f"policy.path={copy}")
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    faults = {str(fault) for fault in verify_run(context.run.root).faults}
    assert faults == {f"{file}: has changed since it was written (SHA-256)"}
    with pytest.raises(RunError, match=r"round_002/policy is damaged:\n(.*\n)put back the model"):
        require_intact(context.run.stage(2, "policy"))
    file.unlink()
    assert {fault.what for fault in verify_run(context.run.root).faults} == {"is missing"}


@pytest.mark.parametrize("reference", ["previous", "fixed"])
@pytest.mark.parametrize("bits", [NF4, "policy.quantisation=null"], ids=["4 bits", "16 bits"])
def test_the_reference_is_the_base_or_an_earlier_adapter_and_the_base_is_held_once(
    job: Path, tmp_path: Path, reference: str, bits: str
) -> None:
    context = two_rounds(
        job, tmp_path, "offline", LORA, bits, "loss.preset=tdpo1", f"training.reference={reference}", "rounds=3"
    )
    supply(context, 3)
    model = policy_to_train(context, 3)
    alone, weights = held_bytes(model), {id(p) for p in model.parameters()}
    other = reference_model(context, 3, model, at_reference=reference == "previous")
    assert other is None, "no second model"
    added = held_bytes(model) - alone
    adapter = (context.policy_path(2) / "adapter_model.safetensors").stat().st_size
    assert (0 < added <= adapter) if reference == "previous" else added == 0
    assert weights <= {id(p) for p in model.parameters()}
    run_stage(context, 3, "policy")
    first = read_steps(context.run.stage(3, "policy").folder / "steps.jsonl")[0]
    at_start = pytest.approx(math.log(2), abs=1e-3)
    assert (first.loss == at_start) == (reference == "previous")


def test_a_run_starts_from_somebodys_adapter(job: Path, tmp_path: Path) -> None:
    given = save_tiny_adapter(tmp_path / "theirs", job / "model", Lora(rank=6, alpha=12, rslora=True), seed=5)
    plain = json.loads((given / "adapter_config.json").read_text())
    # What peft would import, and what decides nothing.
    plain |= {
        "auto_mapping": {"parent_library": "os"},
        "megatron_core": "os",
        "base_model_name_or_path": str(job / "model"),
    }
    (given / "adapter_config.json").write_text(json.dumps(plain))
    context = two_rounds(job, tmp_path, "offline", "training.lora={}", f"policy.adapter={given}")
    start = context.run.stage(0, "policy")
    assert start.require().metrics["adapter_sha256"] == start.require().files["adapter_model.safetensors"]["sha256"]
    written = json.loads((start.folder / "adapter_config.json").read_text())
    assert "auto_mapping" not in written and "megatron_core" not in written and written["use_rslora"] is True
    for round_ in (1, 2):
        assert read_steps(context.run.stage(round_, "policy").folder / "steps.jsonl")[0].loss == pytest.approx(
            math.log(2), abs=5e-4
        )
    assert {t.shape[0] for n, t in tensors(context, 2).items() if "lora_A" in n} == {6}
    base, theirs = (load_policy(str(path)) for path in (job / "model", start.folder))
    # By the SHA-256 of what was under it, whatever the base is called.
    require_base(str(context.policy_path(1)), str(job / "model"))
    other = tmp_path / "model"
    subprocess.run(["cp", "-r", job / "model", other], check=True)
    require_base(str(context.policy_path(1)), str(other))
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match=r"with other weights than those in .*SHA-256 of model\.safetensors"):
        require_base(str(context.policy_path(1)), str(other))
    apart = torch.tensor(score_sequences(base, IDS)) - torch.tensor(score_sequences(theirs, IDS))
    assert apart.abs().max() > 0.1


def test_the_optimisers_state_of_another_adapter_is_refused_before_anything_is_loaded(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = "training.optimiser_state=carried"
    context = two_rounds(job, tmp_path / "a", "offline", LORA, carried)
    others = {
        "is 2 x 128 there and 4 x 128": "training.lora={rank: 2}",
        "it has no base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": (
            "training.lora={rank: 4, target_modules: [q_proj]}"
        ),
    }
    state = context.run.stage(1, "policy").folder / "optimiser" / "state.safetensors"
    require_carried_state(context, 2, state)
    monkeypatch.setattr("flows.stages.training.policies.load_policy", lambda *_, **__: pytest.fail("loaded"))
    for number, (told, lora) in enumerate(others.items()):
        monkeypatch.undo()
        other = two_rounds(job, tmp_path / str(number), "offline", lora, carried)
        theirs = other.run.stage(1, "policy").folder / "optimiser" / "state.safetensors"
        with pytest.raises(UserError, match=r"training\.optimiser_state: carried, but .* another adapter: ") as raised:
            require_carried_state(context, 2, theirs)
        assert told in str(raised.value) and "allowed: fresh" in str(raised.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.tiny_run import begin, open_context, supply
from flows.stages.run import run_stage
from pipeline.training.step_log import StepLog

job, root, at, *settings = sys.argv[1:]
context = open_context(Path(job), Path(root), "offline", *settings)
begin(context)
supply(context, 1)
add = StepLog.add

def add_and_die(self, step):
    add(self, step)
    if step.step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

StepLog.add = add_and_die
run_stage(context, 1, "policy")
"""


def killed(job: Path, root: Path, at: int, settings: Sequence[str]) -> int:
    command = [sys.executable, "-c", KILLED, str(job), str(root), str(at), *settings]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True).returncode


@pytest.mark.whole
@pytest.mark.parametrize(
    "settings",
    [(LORA, NF4), (LORA, INT8), ("training.dtype=bfloat16", "training.weights=bfloat16")],
    ids=["4 bits", "8 bits", "bfloat16 weights"],
)
def test_a_killed_round_goes_on_to_the_same_bits(job: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    settings = (*settings, "training.checkpoint_every=1", "training.epochs=4", "rounds=1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = open_context(job, tmp_path / "whole", "offline", *settings)
        begin(whole)
        train(whole, 1)
        assert killed(job, tmp_path / "killed", 6, settings) == -signal.SIGKILL
        context = open_context(job, tmp_path / "killed", "offline", *settings)
        partial = context.run.stage(1, "policy").partial
        assert [path.name for path in (partial / "checkpoints").glob("step_*")] in (["step_000005"], ["step_000006"])
        run_stage(context, 1, "policy")
    finally:
        torch.set_num_threads(threads)
    files = [next(one.run.stage(1, "policy").folder.glob("*.safetensors")) for one in (whole, context)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_masters_stand_beside_the_newest_policy_alone_and_the_next_round_goes_on_from_them(
    job: Path, tmp_path: Path
) -> None:
    settings = ("training.dtype=bfloat16", "training.learning_rate=5.0e-7", "gate=null")
    context = two_rounds(job, tmp_path, "offline", *settings)
    folders = [context.run.stage(round_, "policy").folder for round_ in (1, 2)]
    assert [stored_dtype(folder) for folder in folders] == ["bfloat16"] * 2
    masters = [load_file(folder / "masters" / "model.safetensors") for folder in folders]
    rounded = [load_file(folder / "model.safetensors") for folder in folders]
    name = "model.layers.0.mlp.up_proj.weight"
    start = load_file(job / "model" / "model.safetensors")[name].float()
    first, second = (one[name] - start for one in masters)
    assert 0 < first.abs().max() < 1e-4 and (second - first).abs().max() > 0
    # Of such steps, rounding leaves next to nothing.
    assert (rounded[0][name].float() != start).float().mean() < 0.05
    assert [freed.title for freed in free_room(context.run, context.config)] == ["round_001/policy"]
    assert not (folders[0] / "masters" / "model.safetensors").exists() and (folders[0] / "model.safetensors").exists()
    assert (folders[1] / "masters" / "model.safetensors").exists()
    assert free_room(context.run, context.config) == [] and verify_run(context.run.root).faults == []
    require_intact(context.run.stage(1, "policy"))
    with pytest.raises(RunError, match=r"float32 weights of round 1 were removed .* --from 1:policy makes them again"):
        policy_to_train(context, 2)


def test_a_run_folder_with_its_own_base_can_be_moved(job: Path, tmp_path: Path) -> None:
    warm = "warm_start={max_steps: 1, micro_batch_size: 8}"
    rows = [json.dumps({"prompt": f"the dog {n}", "response": f"ran to the barn {n}"}) for n in range(9)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    settings = (LORA, warm, f"prompts={{path: {tmp_path / 'texts.jsonl'}}}", "rounds=1")
    context = open_context(job, tmp_path / "run", "offline", *settings)
    write_text_config(context)
    begin(context)
    train(context, 1)
    assert context.run.stage(1, "policy").require().metrics["base"] == "../../round_000/policy"
    moved = tmp_path / "moved"
    context.run.root.rename(moved)
    assert base_of(moved / "round_001" / "policy") == str(moved / "round_000" / "policy")
    assert verify_run(moved).faults == []
    load_policy(str(moved / "round_001" / "policy"))
