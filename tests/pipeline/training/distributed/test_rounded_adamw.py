"""Steps of bfloat16 weights far below their precision count on average, as float32's do."""

import math
import statistics
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from flows.planning.cards.traced import LiveBytes
from pipeline.config import Optimisation
from pipeline.training.distributed.rounded_adamw import rounded_at_random, sum_in_float32
from pipeline.training.optimiser import ParameterGroup, make_optimiser
from tests.support.tiny_training import dpo, pairs_with_reference, tiny_llama, trained

Model = dict[str, torch.Tensor]
SEEDS = range(6)


@cache
def drift(wide: bool, optimiser: str, seed: int, micro: int = 8) -> Model:
    """How far 8 steps of rate 5e-7 move each weight of one model; its values are those of bfloat16."""
    model = tiny_llama().to(torch.bfloat16)
    model = model.float() if wide else model
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    settings = Optimisation.model_validate({
        "learning_rate": 5e-7, "batch_size": 8, "micro_batch_size": micro, "dtype": "bfloat16", "warmup": 0,
        "schedule": "constant", "optimiser": optimiser, "max_grad_norm": 1e9,
    })  # fmt: skip
    trained(model, pairs_with_reference(tiny_llama(), 64), dpo(), settings, seed=seed)
    return {name: p.detach().float() - before[name] for name, p in model.named_parameters()}


def share(moved: Model, wanted: Model) -> float:
    """Of the way of ``wanted``, how much ``moved`` went, by the signs of its weights."""
    gone = sum(float((moved[name] * way.sign()).sum()) for name, way in wanted.items())
    return gone / sum(float(way.abs().sum()) for way in wanted.values())


@pytest.mark.parametrize(
    ("optimiser", "micro"),
    [
        ("adamw", 8),
        pytest.param("adamw", 2, marks=pytest.mark.whole),
        pytest.param("adamw_8bit", 8, marks=pytest.mark.whole),
    ],
)
def test_the_mean_of_tiny_steps_is_that_of_float32(optimiser: str, micro: int) -> None:
    torch.set_num_threads(1)
    shares = [share(drift(False, optimiser, seed, micro), drift(True, "adamw", seed)) for seed in SEEDS]
    error = statistics.stdev(shares) / math.sqrt(len(shares))
    assert abs(statistics.mean(shares) - 1) < 3 * error and error < 0.15


def test_rounded_to_the_nearest_most_of_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.bfloat16
    monkeypatch.setattr("pipeline.training.distributed.rounded_adamw.rounded_at_random", nearest)
    assert share(drift.__wrapped__(False, "adamw", 0), drift(True, "adamw", 0)) < 0.3


def test_rounding_keeps_the_mean_of_both_signs_and_what_has_no_neighbour() -> None:
    torch.manual_seed(0)
    for value in (1 + 2**-9, -(1 + 2**-10), 3e-40, 0.1):
        wide = torch.full((200_000,), value)
        narrow = rounded_at_random(wide).float()
        ulp = float((narrow.max() - narrow.min()).abs())
        assert len(narrow.unique()) <= 2
        assert abs(float(narrow.double().mean()) - float(wide[0])) <= 4 * ulp / 2 / math.sqrt(len(wide))
    odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1.5])
    assert torch.equal(rounded_at_random(odd)[[0, 1, 3, 4]].float(), odd[[0, 1, 3, 4]])
    assert rounded_at_random(odd)[2].isnan()


def test_gradients_of_several_passes_are_added_up_in_float32_and_of_one_are_as_narrow_as_weights() -> None:
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    frozen = nn.Linear(1, 1).to(torch.bfloat16).requires_grad_(False)
    for several, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        layer.weight.grad = None
        sum_in_float32(nn.ModuleList([layer, frozen]), several=several)
        for _ in range(300):
            layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.dtype == dtype
        # bfloat16 counts to 256.
        assert float(layer.weight.grad) == (300 if several else 256)


SLICE = 4096


@pytest.mark.parametrize("optimiser", ["adamw", "adamw_8bit"])
def test_a_tensor_is_stepped_in_slices_to_the_same_state_and_never_stands_in_float32(
    optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding is the largest tensor of a small model: 1 GB of it would be 9.5 GB in the step of it at once."""

    def stepped(slices: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        monkeypatch.setattr("pipeline.training.distributed.rounded_adamw.STEP_SLICE", slices)
        draw = torch.Generator().manual_seed(3)
        weight = nn.Parameter(torch.randn(40, 1000, generator=draw).bfloat16())
        made = make_optimiser(
            [ParameterGroup({"weight": weight}, 0.1)],
            Optimisation.model_validate({"optimiser": optimiser, "learning_rate": 1e-2, "dtype": "bfloat16"}),
        )
        peak = 0
        for _ in range(3):
            weight.grad_dtype = torch.float32
            weight.grad = torch.randn(40, 1000, generator=draw)
            torch.manual_seed(5)
            kept = [value for value in made.state[weight].values() if isinstance(value, torch.Tensor)]
            live = LiveBytes([weight, weight.grad, *kept])
            if kept:
                with live:
                    made.step()
                peak = max(peak, live.peak)
            else:
                made.step()
        state = {name: value for name, value in made.state[weight].items() if isinstance(value, torch.Tensor)}
        assert float(made.state[weight]["step"]) == 3
        return weight.detach().float(), state, peak

    (cut, ours, little), (whole, theirs, much) = stepped(SLICE), stepped(1 << 24)
    assert ours.keys() == theirs.keys()
    # Rounding draws other numbers, so that weights differ by it and later steps by little.
    assert (cut - whole).abs().max() <= whole.abs().max() / 64
    torch.testing.assert_close(cut.mean(), whole.mean(), rtol=0, atol=1e-5)
    for name, value in ours.items():
        if value.dtype == torch.float32 and name != "step":
            torch.testing.assert_close(value, theirs[name], rtol=0.02, atol=1e-6)
    assert much > 40_000 * 15 and little < SLICE * 32
