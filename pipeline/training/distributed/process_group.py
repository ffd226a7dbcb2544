"""Several processes on this machine that train one model: each joins once and keeps its rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.distributed.launch import Launch

# Variables that tell accelerate a process's place among others.
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# The process types that accelerate may see; sharding of parameters is separate
# (pipeline/training/distributed/fsdp.py).
SUPPORTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def join(launch: Launch, rank: int, store: Path, stall_timeout: float) -> Accelerator:
    """Join the other processes; return when all are there.

    They find each other through a file and talk over the loopback interface: nothing listens on the network.

    Args:
        launch: the number of processes, and their devices.
        rank: of this process, from 0.
        store: a file that all can see, and that did not exist before the first one joined.
        stall_timeout: seconds that one process may wait for another.

    Raises:
        UserError: fewer accelerators than processes.
    """
    found = torch.cuda.device_count()
    if not launch.cpu and found < launch.processes:
        raise UserError(
            f"accelerate: num_processes: {launch.processes}, but there are {found} accelerators (use_cpu: true trains "
            "on the CPU)"
        )
    if launch.processes > 1 and not torch.distributed.is_initialized():
        place = (rank, rank, launch.processes, launch.processes)
        os.environ.update({name: str(value) for name, value in zip(_PLACE, place, strict=True)})
        if Path("/sys/class/net/lo").exists():
            os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
        if not launch.cpu:
            torch.cuda.set_device(rank)
        else:
            # accelerate would set it itself, with a warning.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.processes)))
        torch.distributed.init_process_group(
            "gloo" if launch.cpu else "cpu:gloo,cuda:nccl",
            init_method=f"file://{store.resolve()}",
            rank=rank,
            world_size=launch.processes,
            timeout=timedelta(seconds=stall_timeout),
        )
    return Accelerator(cpu=launch.cpu, mixed_precision="no")


@contextmanager
def alone() -> Iterator[Accelerator]:
    """Inside the block, compute in this process alone, also if it has joined others: accelerate forgets them."""
    states = (PartialState._shared_state, AcceleratorState._shared_state)
    before = [dict(state) for state in states]
    if not torch.distributed.is_initialized():
        yield Accelerator()
        return
    place = {name: os.environ.pop(name) for name in _PLACE if name in os.environ}
    for state in states:
        state.clear()
    try:
        yield Accelerator()
    finally:
        os.environ.update(place)
        for state, known in zip(states, before, strict=True):
            state.clear()
            state.update(known)


def require_supported(accelerator: Accelerator) -> None:
    """Raise ``UserError`` if accelerate found processes of a type that training does not know."""
    if accelerator.distributed_type not in SUPPORTED:
        kind = accelerator.distributed_type.value
        raise UserError(f"training: {kind} is not supported; one process, DDP, or FSDP2 by the run's accelerate")


def over_processes(sums: Tensor, accelerator: Accelerator) -> Tensor:
    """Return ``sums`` added up over all processes, float64 on the CPU."""
    if accelerator.num_processes == 1:
        return sums
    # Not every device has float64; the counts of one batch are exact in float32 up to 16 million.
    reduced: Tensor = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum")
    return reduced.double().cpu()
