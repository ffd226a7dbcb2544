"""What several processes hold together: all of it as often as there are processes, or cut over them."""

from typing import Any

import pytest

from flows.planning.arithmetic import STATE_BYTES, ParameterCounts, TrainerMemory
from flows.planning.memory import held_together
from pipeline.config import Optimisation
from pipeline.training.distributed.launch import Launch

GIVEN = {"num_processes": 2}


def memory(optimiser: str = "adamw") -> TrainerMemory:
    return TrainerMemory(ParameterCounts(100, 100), 64, reference_beside=True, state_bytes=STATE_BYTES[optimiser])


def held(
    *, device: bool, optimiser: Any = "adamw", card_bytes: int = 1599, sync: Any = "auto", **given: Any
) -> tuple[dict[str, int], frozenset[str]]:
    launch = Launch.model_validate(GIVEN | given) if given else None
    settings = Optimisation(optimiser=optimiser, gradient_sync=sync)
    parts, away = held_together(memory(optimiser), settings, launch, device=device, card_bytes=card_bytes)
    return {name: size for name, size in parts.items() if size}, away


def test_one_process_holds_what_it_holds() -> None:
    parts, away = held(device=True)
    assert parts == {"weights": 800, "gradients": 400, "optimiser": 800, "activations": 64}
    assert away == {"whole policy"}


@pytest.mark.parametrize(
    ("optimiser", "size", "where"),
    [("adamw_8bit", 200, set()), ("adamw_8bit_paged", 200, {"optimiser"}), ("adamw_offload", 800, {"optimiser"})],
)
def test_the_optimiser_decides_how_large_its_state_is_and_where(optimiser: str, size: int, where: set[str]) -> None:
    parts, away = held(device=True, optimiser=optimiser)
    assert parts["optimiser"] == size and away == where | {"whole policy"}


def test_processes_on_a_cpu_share_its_memory_and_each_accelerator_has_its_own() -> None:
    parts, _ = held(device=False, distributed_type="DDP", use_cpu=True)
    assert parts == {"weights": 1600, "gradients": 800, "optimiser": 1600, "activations": 128}
    parts, _ = held(device=True, distributed_type="DDP")
    assert parts == {"weights": 800, "gradients": 400, "optimiser": 800, "activations": 64}


def test_fsdp2_cuts_the_policy_and_the_main_process_keeps_one_in_one_piece() -> None:
    sharding = {"fsdp_version": 2}
    parts, away = held(device=True, distributed_type="FSDP2", fsdp_config=sharding)
    # Half of the policy, and of the reference.
    assert parts == {"weights": 400, "gradients": 200, "optimiser": 400, "activations": 64, "whole policy": 400}
    assert away == {"whole policy"}
    parts, away = held(device=True, distributed_type="FSDP2", fsdp_config=sharding | {"fsdp_offload_params": True})
    assert away == {"weights", "gradients", "optimiser", "whole policy"}
    assert (parts["weights"], parts["gradients"], parts["optimiser"]) == (800, 400, 800)


def test_fsdp2_sums_whole_gradients_of_several_passes_where_a_quarter_of_the_card_holds_them() -> None:
    sharding = {"distributed_type": "FSDP2", "fsdp_config": {"fsdp_version": 2}}
    assert "gradient sums" not in held(device=True, **sharding)[0]
    parts, away = held(device=True, card_bytes=1600, **sharding)
    assert (parts["gradients"], parts["gradient sums"]) == (200, 400) and "gradient sums" not in away
    assert held(device=True, sync="step", **sharding)[0] == parts
    assert "gradient sums" not in held(device=True, card_bytes=10**9, sync="pass", **sharding)[0]
    # On a CPU, in each of the processes; others than FSDP2 have no sums beside their gradients.
    assert held(device=False, card_bytes=1600, use_cpu=True, **sharding)[0]["gradient sums"] == 800
    assert "gradient sums" not in held(device=True, card_bytes=1600, distributed_type="DDP")[0]


def test_zero_cuts_the_state_and_in_its_second_stage_gradients() -> None:
    first, _ = held(device=True, distributed_type="DeepSpeed", deepspeed_config={"zero_stage": 1})
    second, away = held(
        device=True,
        distributed_type="DeepSpeed",
        deepspeed_config={"zero_stage": 2, "offload_optimizer_device": "cpu"},
    )
    assert (first["gradients"], first["optimiser"]) == (400, 400)
    assert (second["gradients"], second["optimiser"]) == (200, 800) and "optimiser" in away
