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


def held(*, device: bool, optimiser: Any = "adamw", **given: Any) -> tuple[dict[str, int], frozenset[str]]:
    launch = Launch.model_validate(GIVEN | given) if given else None
    return held_together(memory(optimiser), Optimisation(optimiser=optimiser), launch, device=device)


def test_one_process_holds_what_it_holds() -> None:
    parts, away = held(device=True)
    assert parts == {"weights": 800, "gradients": 400, "optimiser": 800, "activations": 64, "whole policy": 0}
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
    assert parts == {"weights": 1600, "gradients": 800, "optimiser": 1600, "activations": 128, "whole policy": 0}
    parts, _ = held(device=True, distributed_type="DDP")
    assert parts == {"weights": 800, "gradients": 400, "optimiser": 800, "activations": 64, "whole policy": 0}


def test_fsdp2_cuts_the_policy_and_the_main_process_keeps_one_in_one_piece() -> None:
    sharding = {"fsdp_version": 2}
    parts, away = held(device=True, distributed_type="FSDP2", fsdp_config=sharding)
    # Half of the policy, and the reference whole.
    assert parts == {"weights": 600, "gradients": 200, "optimiser": 400, "activations": 64, "whole policy": 400}
    assert away == {"whole policy"}
    parts, away = held(device=True, distributed_type="FSDP2", fsdp_config=sharding | {"fsdp_offload_params": True})
    assert away == {"weights", "gradients", "optimiser", "whole policy"}
    assert (parts["weights"], parts["gradients"], parts["optimiser"]) == (1200, 400, 800)


def test_zero_cuts_the_state_and_in_its_second_stage_gradients() -> None:
    first, _ = held(device=True, distributed_type="DeepSpeed", deepspeed_config={"zero_stage": 1})
    second, away = held(
        device=True,
        distributed_type="DeepSpeed",
        deepspeed_config={"zero_stage": 2, "offload_optimizer_device": "cpu"},
    )
    assert (first["gradients"], first["optimiser"]) == (400, 400)
    assert (second["gradients"], second["optimiser"]) == (200, 800) and "optimiser" in away
