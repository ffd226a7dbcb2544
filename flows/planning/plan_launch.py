"""What processes that train together hold, from what one of them would hold alone."""

from flows.planning.arithmetic import OFF_DEVICE, WEIGHT_BYTES, TrainerMemory
from pipeline.config import Optimisation
from pipeline.training.distributed.launch import Launch


def held_together(
    memory: TrainerMemory, settings: Optimisation, launch: Launch | None, *, device: bool
) -> tuple[dict[str, int], frozenset[str]]:
    """(bytes by name, names of those that are not on the accelerator).

    What stands on accelerators is that of one of them, the rest that of the whole machine. With FSDP2 the layer whose
    weights are gathered comes on top.

    Args:
        memory: of one process that trains alone; each has passes of that size.
        settings: of the training.
        launch: of the run; None: there is one process.
        device: whether training is on accelerators.
    """
    away = _away(settings, launch) if device else frozenset({*memory.parts})
    count, cut = (1, frozenset[str]()) if launch is None else (launch.processes, _cut(launch))
    policy = memory.parameters.total * WEIGHT_BYTES
    beside = memory.weights - policy

    def held(name: str, size: int) -> int:
        return round(size * (count if name in away else 1) / (count if name in cut else 1))

    parts = {name: held(name, size) for name, size in (memory.parts | {"weights": policy}).items()}
    parts["weights"] += beside * (count if "weights" in away else 1)
    # The main process of FSDP2 keeps the policy in one piece, to write it.
    parts["whole policy"] = policy if launch is not None and launch.kind == "FSDP2" else 0
    return parts, away | {"whole policy"}


def _cut(launch: Launch) -> frozenset[str]:
    """What is cut over the processes; each holds all of the rest."""
    if launch.kind == "FSDP2":
        return frozenset({"weights", "gradients", "optimiser"})
    if launch.zero is not None:
        return frozenset({"optimiser"} if launch.zero.stage == 1 else {"gradients", "optimiser"})
    return frozenset()


def _away(settings: Optimisation, launch: Launch | None) -> frozenset[str]:
    """What an accelerator need not hold."""
    if launch is not None and launch.sharding is not None and launch.sharding.offload:
        return frozenset({"weights", "gradients", "optimiser"})
    offloads = launch is not None and launch.zero is not None and launch.zero.offload == "cpu"
    return frozenset({"optimiser"} if offloads or settings.optimiser in OFF_DEVICE else ())
