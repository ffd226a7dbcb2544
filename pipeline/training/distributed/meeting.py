"""Training processes that something else started, such as Ray: where they find each other, and how they join."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.errors import RunError, UserError
from pipeline.storage.cores import usable_cores
from pipeline.training.distributed.launch import Launch
from pipeline.types.counts import number_of

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Meeting:
    """Where training processes find each other, and one's place on its machine.

    Attributes:
        address: of a machine with torch's TCPStore.
        port: of it.
        local_rank: of the process, from 0.
        on_each: training processes on its machine.
        interface: network interface between them; None: the library's own choice.
    """

    address: str
    port: int
    local_rank: int
    on_each: int
    interface: str | None = None


def meet(launch: Launch, rank: int, meeting: Meeting, stall_timeout: float) -> "Accelerator":
    """Join the other processes; return when all are there.

    Args:
        launch: the number of processes, on all machines together.
        rank: of this process, from 0.
        meeting: where they find each other.
        stall_timeout: seconds that one process may wait for another.

    Raises:
        UserError: fewer accelerators than processes on this machine.
        RunError: the others did not come.
    """
    import torch
    from accelerate import Accelerator

    # torch does not say that it exports its stores.
    distributed: Any = torch.distributed
    if not distributed.is_initialized():
        os.environ.update(_place(launch, rank, meeting))
        if launch.cpu:
            # accelerate would set it itself, with a warning.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // meeting.on_each)))
        elif torch.cuda.device_count() < meeting.on_each:
            raise UserError(
                f"accelerate: use_cpu: false, but a training process's machine has {torch.cuda.device_count()} "
                f"accelerators for {number_of(meeting.on_each, 'process', 'processes')} (use_cpu: true trains on the "
                "CPU)"
            )
        else:
            torch.cuda.set_device(meeting.local_rank)
        timeout = timedelta(seconds=stall_timeout)
        try:
            board = distributed.TCPStore(meeting.address, meeting.port, is_master=False, timeout=timeout)
            distributed.init_process_group(
                "gloo" if launch.cpu else "cpu:gloo,cuda:nccl",
                store=distributed.PrefixStore("trainer", board),
                rank=rank,
                world_size=launch.processes,
                timeout=timeout,
            )
        except distributed.DistError as error:
            said = str(error).splitlines()[0]
            raise RunError(f"training process {rank} of {launch.processes} did not find the others: {said}") from error
    return Accelerator(cpu=launch.cpu, mixed_precision="no")


def _place(launch: Launch, rank: int, meeting: Meeting) -> dict[str, str]:
    """Return the variables by which torch's and accelerate's own launchers name a process's place."""
    found = {
        "RANK": str(rank),
        "LOCAL_RANK": str(meeting.local_rank),
        "WORLD_SIZE": str(launch.processes),
        "LOCAL_WORLD_SIZE": str(meeting.on_each),
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
    }
    interface = meeting.interface or ("lo" if meeting.address == _LOOPBACK else None)
    given = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {**found, **given}
