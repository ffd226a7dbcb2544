"""Processes that train one model, on this machine or several: each joins once and keeps its rank."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from pipeline.errors import RunError, UserError
from pipeline.models.attention.context import ContextGroup
from pipeline.storage.cores import usable_cores
from pipeline.training.distributed.launch import Launch
from pipeline.types.counts import number_of

# Variables that tell accelerate a process's place among others.
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# The process types that accelerate may see; sharding of parameters is separate
# (pipeline/training/distributed/fsdp.py).
SUPPORTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
# torch does not say that it exports its stores.
_torch: Any = torch.distributed
# What gloo and NCCL talk over.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def join(launch: Launch, rank: int, store: Path, stall_timeout: float) -> Accelerator:
    """Join the other processes; return when all are there.

    On one machine they find each other through a file and talk over the loopback interface: nothing listens on the
    network. On several, through the store that listens at ``launch.address``, over the interface that leads there
    unless ``INTERFACES`` name another.

    Args:
        launch: the number of processes, and their devices.
        rank: of this process, from 0, over all machines.
        store: for one machine: a file that all can see, and that did not exist before the first one joined.
        stall_timeout: seconds that one process may wait for another.

    Raises:
        UserError: fewer accelerators than processes, or an address that is none.
        RunError: the others did not come.
    """
    found, local = torch.cuda.device_count(), rank % launch.on_each
    if not launch.cpu and found < launch.on_each:
        here = "" if launch.machines == 1 else f" ({launch.on_each} on each of {launch.machines} machines)"
        raise UserError(
            f"accelerate: num_processes: {launch.processes}{here}, but this machine has "
            f"{number_of(found, 'accelerator')} (use_cpu: true trains on the CPU)"
        )
    if launch.processes > 1 and not torch.distributed.is_initialized():
        os.environ.update({**_place(launch, rank), **_interfaces(launch)})
        if not launch.cpu:
            torch.cuda.set_device(local)
        else:
            # accelerate would set it itself, with a warning.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // launch.on_each)))
        timeout = timedelta(seconds=stall_timeout)
        backend = "gloo" if launch.cpu else "cpu:gloo,cuda:nccl"
        try:
            torch.distributed.init_process_group(
                backend,
                store=_meeting(launch, store, timeout),
                rank=rank,
                world_size=launch.processes,
                timeout=timeout,
            )
        except torch.distributed.DistError as error:
            said = str(error).splitlines()[0]
            raise RunError(f"training process {rank} of {launch.processes} did not find the others: {said}") from error
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


def _place(launch: Launch, rank: int) -> dict[str, str]:
    """Return the variables by which torch's and accelerate's own launchers name a process's place."""
    numbers = (rank, rank % launch.on_each, launch.processes, launch.on_each)
    found = {name: str(number) for name, number in zip(_PLACE, numbers, strict=True)}
    return found if launch.address is None else found | {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}


def _meeting(launch: Launch, file: Path, timeout: timedelta) -> Any:
    if launch.machines == 1:
        return _torch.FileStore(str(file.resolve()), launch.processes)
    assert launch.address is not None, "checked when it was read"
    board = _torch.TCPStore(launch.address, launch.port, is_master=False, timeout=timeout)
    return _torch.PrefixStore("processes", board)


def _interfaces(launch: Launch) -> Mapping[str, str]:
    if launch.machines == 1:
        return dict.fromkeys(INTERFACES, "lo") if Path("/sys/class/net/lo").exists() else {}
    assert launch.address is not None, "checked when it was read"
    found = interface_towards(launch.address)
    return {} if found is None else {name: os.environ.get(name) or found for name in INTERFACES}


def interface_towards(address: str) -> str | None:
    """Return the network interface over which this machine reaches ``address``; None if it cannot be told.

    Left to themselves, gloo takes the one that this machine's name stands for, often the loopback interface, and NCCL
    the first that is up.

    Raises:
        UserError: no such address.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Of a datagram socket this sends nothing.
            probe.connect(place)
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"accelerate: main_process_ip: {address}: {error.strerror or error}") from None
    named = psutil.net_if_addrs().items()
    return next((name for name, known in named if own in {one.address.partition("%")[0] for one in known}), None)


def context_group(accelerator: Accelerator, size: int) -> ContextGroup | None:
    """Return this process's group of ``size`` that compute each row together: neighbouring ranks. None: it is alone."""
    if size == 1:
        return None
    shape = (accelerator.num_processes // size, size)
    mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=("rows", "context"))
    return ContextGroup(mesh.get_group("context"), mesh.get_local_rank("context"), size)


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
