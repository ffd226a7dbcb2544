"""AdamW whose state is small or elsewhere: the same steps, or nearly, and taken up again from files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from pipeline.config import Optimisation
from pipeline.errors import UserError
from pipeline.training.distributed.offloaded_adamw import OffloadedAdamW
from pipeline.training.distributed.requirements import require_optimiser
from pipeline.training.optimiser import ParameterGroup, load_optimiser, make_optimiser, save_optimiser, trainable


def settings(**fields: Any) -> Optimisation:
    return Optimisation.model_validate({"learning_rate": 1e-2, "weight_decay": 0.1} | fields)


def model() -> nn.Module:
    """A matrix of 128 x 64 (large enough for 8 bits), and two vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128))


def groups(of: nn.Module) -> list[ParameterGroup]:
    return [ParameterGroup(trainable(of), 0.1)]


def step(trained: nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        trained(torch.randn(8, 64)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()


def offloaded(of: nn.Module) -> OffloadedAdamW:
    plain = make_optimiser(groups(of), settings())
    kept = ("params", "weight_decay", "rate")
    return OffloadedAdamW([{key: group[key] for key in kept} for group in plain.param_groups], 1e-2, (0.9, 0.95))


def made(kind: str, of: nn.Module) -> torch.optim.Optimizer:
    return offloaded(of) if kind == "adamw_offload" else make_optimiser(groups(of), settings(optimiser=kind))


def test_steps_with_state_elsewhere_are_fused_adamw_s_to_the_bit() -> None:
    ours, theirs = model(), model()
    step(ours, made("adamw_offload", ours), range(5))
    step(theirs, made("adamw", theirs), range(5))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(ours[0].weight, model()[0].weight)


def test_eight_bits_of_state_take_nearly_the_same_steps() -> None:
    ours, theirs = model(), model()
    small = made("adamw_8bit", ours)
    step(ours, small, range(5))
    step(theirs, made("adamw", theirs), range(5))
    moved = (theirs[0].weight - model()[0].weight).abs().mean()
    apart = (ours[0].weight - theirs[0].weight).abs().mean()
    assert 0 < apart < 0.05 * moved
    # Vectors are below bitsandbytes' 4,096 weights and keep 32 bits.
    torch.testing.assert_close(ours[1].weight, theirs[1].weight, rtol=0, atol=1e-3)
    states = small.state[ours[0].weight]
    held = sum(states[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))
    assert held < 2.1 * ours[0].weight.numel()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adamw_offload"])
def test_state_goes_on_from_a_file_bit_by_bit(kind: str, tmp_path: Path) -> None:
    whole = model()
    optimiser = made(kind, whole)
    step(whole, optimiser, range(3))
    save_optimiser(optimiser, trainable(whole), tmp_path / "state.safetensors", Accelerator(cpu=True))
    resumed = model()
    resumed.load_state_dict(whole.state_dict())
    again = made(kind, resumed)
    load_optimiser(again, trainable(resumed), tmp_path / "state.safetensors")
    step(whole, optimiser, range(3, 6))
    step(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert float(load_file(tmp_path / "state.safetensors")["0.weight.step"]) == 3


def test_state_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    whole = model()
    optimiser = made("adamw", whole)
    step(whole, optimiser, range(1))
    save_optimiser(optimiser, trainable(whole), tmp_path / "state.safetensors", Accelerator(cpu=True))
    with pytest.raises(UserError, match=r"another training.optimiser: 0.weight is missing or is not \(128, 64\)"):
        load_optimiser(made("adamw_8bit", whole), trainable(whole), tmp_path / "state.safetensors")


@pytest.mark.parametrize("kind", ["adamw_offload", "adamw_paged", "adamw_8bit_paged"])
def test_what_saves_an_accelerator_s_memory_is_refused_without_one(kind: str) -> None:
    with pytest.raises(UserError, match=rf"^warm_start.optimiser: {kind} .* training is on the CPU"):
        require_optimiser(settings(optimiser=kind), "warm_start", on_accelerator=False)
    require_optimiser(settings(optimiser=kind), "warm_start", on_accelerator=True)
