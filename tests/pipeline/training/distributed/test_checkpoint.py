"""Taking training up again: after a kill, and in the next round."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from pipeline.config import Lora, Optimisation
from pipeline.errors import RunError, UserError
from pipeline.models.weights.lora import add_adapter
from pipeline.training.distributed.checkpoint import Trained, keep_weights, take_up_kept
from pipeline.training.train import Example, StepReport, TrainResult
from tests.support.loss_examples import examples_for, loss_named
from tests.support.tiny_training import dpo, pairs_with_reference, tiny_llama, trained

SETTINGS = Optimisation(batch_size=4, micro_batch_size=2, learning_rate=1e-3, epochs=2.0, checkpoint_every=3)


class KilledError(Exception):
    pass


def kill_at(step: int) -> Any:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            raise KilledError

    return on_step


def pairs() -> list[Example]:
    return pairs_with_reference(tiny_llama(), 18)


def model(lora: bool) -> Any:
    return add_adapter(tiny_llama(), Lora(rank=2, dropout=0.2), seed=3) if lora else tiny_llama()


def fit(policy: Any, settings: Optimisation = SETTINGS, **options: Any) -> TrainResult:
    loss = options.pop("loss", None) or dpo()
    return trained(policy, options.pop("examples", None) or pairs(), loss, settings, seed=5, **options)


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_goes_on_in_the_middle_of_an_epoch_bit_by_bit(lora: bool, tmp_path: Path) -> None:
    whole = model(lora)
    expected = fit(whole)
    with pytest.raises(KilledError):
        fit(model(lora), checkpoints=tmp_path, on_step=kill_at(8))
    assert [place.name for place in tmp_path.iterdir()] == ["step_000006"]
    torch.manual_seed(99)
    resumed, seen = model(lora), list[int]()
    result = fit(resumed, checkpoints=tmp_path, on_step=lambda report: seen.append(report.step))
    assert seen == [7, 8, 9, 10]
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [r.loss for r in result.history] == [r.loss for r in expected.history]


@pytest.mark.parametrize(
    "name",
    [
        *("sparsepo", "ganpo", "beta_dpo", "apa_token"),
        *(pytest.param(name, marks=pytest.mark.whole) for name in ("mi_dpo", "hpo", "alpha_dpo", "bco", "sampo")),
    ],
)
def test_what_a_loss_keeps_beside_the_policy_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    loss = loss_named(name)
    options: dict[str, Any] = {"loss": loss, "reference": tiny_llama(seed=1)}
    options["examples"] = examples_for(loss, 18, tiny_llama(seed=1))
    whole, resumed = tiny_llama(), tiny_llama()
    expected = fit(whole, heads_to=tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path / "kept", on_step=kill_at(8), **options)
    torch.manual_seed(99)
    torch.rand(3)
    result = fit(resumed, checkpoints=tmp_path / "kept", heads_to=tmp_path / "resumed", **options)
    assert [r.loss for r in result.history] == [r.loss for r in expected.history]
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    trains_heads = name in ("sparsepo", "mi_dpo", "ganpo", "hpo", "apa_token")
    assert (tmp_path / "whole").exists() == trains_heads
    if trains_heads:
        heads = [load_file(tmp_path / folder / "heads.safetensors") for folder in ("whole", "resumed")]
        assert heads[0].keys() == heads[1].keys()
        assert all(torch.equal(tensor, heads[1][part]) for part, tensor in heads[0].items())
    running = json.loads((tmp_path / "kept" / "step_000010" / "progress.json").read_text())["running"]
    assert bool(running) == (name in ("beta_dpo", "alpha_dpo", "bco"))
    assert name != "bco" or running["reward_count"] == 2 * 18, "of all steps, those before the kill too"


@pytest.mark.parametrize("every", [3, 5, 100])
def test_a_finished_run_is_not_trained_again(every: int, tmp_path: Path) -> None:
    done, resumed, seen = tiny_llama(), tiny_llama(), list[int]()
    settings, state = SETTINGS.model_copy(update={"checkpoint_every": every}), tmp_path / "state.safetensors"
    expected = fit(done, settings, checkpoints=tmp_path / "kept", optimiser_to=state)
    moments = load_file(state)
    state.unlink()
    again = {"checkpoints": tmp_path / "kept", "optimiser_to": state}
    assert fit(resumed, settings, on_step=lambda report: seen.append(report.step), **again) == expected
    assert seen == []
    assert [place.name for place in (tmp_path / "kept").iterdir()] == ["step_000010"]
    theirs = done.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.state_dict().items())
    assert all(torch.equal(tensor, moments[name]) for name, tensor in load_file(state).items())
    assert not resumed.training


def test_without_an_interval_there_are_no_checkpoints(tmp_path: Path) -> None:
    fit(tiny_llama(), SETTINGS.model_copy(update={"checkpoint_every": 0}), checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_holds_what_training_changes_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(model(lora=True), checkpoints=tmp_path, on_step=kill_at(4))
    (place,) = tmp_path.iterdir()
    assert all("lora_" in name for name in load_file(place / "weights.safetensors"))
    assert {file.name for file in place.iterdir()} == {"weights.safetensors", "optimiser.safetensors", "progress.json"}


def test_what_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step_000009.partial").mkdir()
    (tmp_path / "step_000009.partial" / "weights.safetensors").write_bytes(b"half")
    result = fit(tiny_llama(), checkpoints=tmp_path)
    assert result.steps == 10


def test_a_checkpoint_of_other_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path, on_step=kill_at(4))
    for changed in (
        {"settings": SETTINGS.model_copy(update={"learning_rate": 2e-3})},
        {"examples": pairs()[:-1]},
    ):
        with pytest.raises(UserError, match="step_000003: a checkpoint of training with other settings"):
            fit(tiny_llama(), checkpoints=tmp_path, **changed)


def test_settings_that_do_not_change_the_result_may_change(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path, on_step=kill_at(4))
    other = SETTINGS.model_copy(update={"micro_batch_size": 4, "checkpoint_every": 1})
    assert fit(tiny_llama(), other, checkpoints=tmp_path).steps == 10


@pytest.mark.parametrize("name", ["weights.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path, on_step=kill_at(4))
    (tmp_path / "step_000003" / name).write_bytes(b"{")
    with pytest.raises(RunError, match="step_000003: not a readable checkpoint"):
        fit(tiny_llama(), checkpoints=tmp_path)


def test_a_checkpoint_whose_step_is_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path, on_step=kill_at(4))
    file = tmp_path / "step_000003" / "progress.json"
    told = file.read_text().replace('"step": 3', '"step": 2')
    assert told != file.read_text()
    file.write_text(told)
    with pytest.raises(RunError, match=r"step_000003: not a readable checkpoint: progress\.json has changed"):
        fit(tiny_llama(), checkpoints=tmp_path)


def one_step(steps: int) -> Optimisation:
    return Optimisation(
        batch_size=18, micro_batch_size=18, learning_rate=1e-3, schedule="constant", warmup=0, epochs=float(steps)
    )


def test_two_rounds_with_carried_state_are_one_run_of_twice_the_steps(tmp_path: Path) -> None:
    whole, halves, fresh = tiny_llama(), tiny_llama(), tiny_llama()
    fit(whole, one_step(4))
    fit(halves, one_step(2), optimiser_to=tmp_path / "a.safetensors")
    fit(halves, one_step(2), optimiser_from=tmp_path / "a.safetensors", optimiser_to=tmp_path / "b.safetensors")
    fit(fresh, one_step(2))
    fit(fresh, one_step(2))
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], expected, rtol=0, atol=2e-5)
    apart = max((fresh.state_dict()[name] - t).abs().max() for name, t in whole.state_dict().items())
    assert apart > 1e-4
    assert load_file(tmp_path / "b.safetensors")["model.norm.weight.step"].item() == 4


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(model(lora=True), one_step(1), optimiser_to=tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=r"lora\.safetensors: optimiser state of another model"):
        fit(tiny_llama(), one_step(1), optimiser_from=tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="cannot read this optimiser state"):
        fit(tiny_llama(), one_step(1), optimiser_from=tmp_path / "absent.safetensors")


def test_weights_that_an_earlier_version_kept_as_a_file_are_taken_up_and_removed(tmp_path: Path) -> None:
    step, whole, resumed, accelerator = 4, tiny_llama(), tiny_llama(seed=1), Accelerator(cpu=True)
    optimiser = torch.optim.AdamW(resumed.parameters())
    kept, taken = dict(whole.named_parameters()), Trained(dict(resumed.named_parameters()), {}, optimiser)
    for number in (2, step):
        save_file({name: tensor.detach() for name, tensor in kept.items()}, tmp_path / f"kept_{number:06d}.safetensors")
    keep_weights(tmp_path, 9, taken, accelerator, state=False, needed=step)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["kept_000004.safetensors", "kept_000009"]
    take_up_kept(tmp_path, step, taken, state=False)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in taken.parameters.items())
    keep_weights(tmp_path, 10, taken, accelerator, state=False, needed=None)
    assert [place.name for place in tmp_path.iterdir()] == ["kept_000010"]
    with pytest.raises(RunError, match=r"kept_000009.weights\.safetensors: not readable weights"):
        take_up_kept(tmp_path, 9, taken, state=False)
