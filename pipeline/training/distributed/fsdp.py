"""FSDP2: each process holds a slice of every weight, of its gradient and of the optimiser's state.

Frozen reference models are sharded in the same way; heads and critics hold their slices themselves
(``pipeline.training.auxiliary.modules``). A sharded tensor is a ``DTensor``; everything written to files is whole, so
that a run may resume with another number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.config import Optimisation
from pipeline.errors import UserError
from pipeline.images.draw_scores import FactsModule
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import plain_model
from pipeline.models.weights.shard_files import write_shards
from pipeline.training.distributed.launch import Sharding, Zero, reduced_once


def shard(policy: FactsModule, settings: Sharding, accelerator: Accelerator) -> None:
    """Shard the parameters of ``policy`` over all processes, one unit per layer; the rest form the root unit.

    The root unit stays gathered from the forward pass to the end of the backward pass, since the output head's weight
    is used directly, in chunks, and again in the backward pass.

    With bfloat16 products, weights are gathered in bfloat16 and freed with their layer, gradients reduced in float32.
    Were they gathered in float32, autocast would keep a 16-bit copy of the whole model until the forward pass ends.

    Raises:
        UserError: the model has no layer with a name from the settings.
    """
    _shard(policy, plain_model(policy.model), settings, policy.dtype == "bfloat16", mesh_of(accelerator))


class ShardedReference(nn.Module):
    """A frozen model whose weights are sharded; ``forward`` does some work with it.

    Layers are gathered for their own pass alone. The root unit, with embeddings and output head, stays gathered until
    ``release``, since the backward pass computes the head's logits again.
    """

    def __init__(self, model: Any, settings: Sharding, accelerator: Accelerator, *, narrow: bool) -> None:
        """Shard ``model``, which is of no other use afterwards; ``narrow``: its products are bfloat16."""
        super().__init__()
        self.model = model.requires_grad_(False)
        whole_weights = any(p.dtype == torch.float32 for p in model.parameters())
        _shard(self, plain_model(model), settings, narrow and whole_weights, mesh_of(accelerator))

    def forward(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` does with the model."""
        return work()

    def release(self) -> None:
        """Free the gathered weights of the root unit."""
        root: Any = self
        root.reshard()


def shard_reference(
    facts: FactsModule, reference: Any | None, sharding: Sharding | Zero | None, accelerator: Accelerator
) -> ShardedReference | None:
    """Shard the ``reference`` that ``facts`` read, if it is a model of its own and the policy is sharded too."""
    if not isinstance(sharding, Sharding) or not isinstance(facts, TokenLogps) or reference in (None, facts.model):
        return None
    made = ShardedReference(reference, sharding, accelerator, narrow=facts.dtype == "bfloat16")
    facts.run_reference_in(made)
    return made


def mesh_of(accelerator: Accelerator) -> DeviceMesh:
    """Return the mesh of all processes."""
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def _shard(root: nn.Module, model: Any, settings: Sharding, narrow: bool, mesh: DeviceMesh) -> None:
    offload = CPUOffloadPolicy() if settings.offload else OffloadPolicy()
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if narrow else MixedPrecisionPolicy()
    for layer in _layers(root, model, settings):
        again = settings.reshard
        fully_shard(layer, mesh=mesh, reshard_after_forward=again, mp_policy=precision, offload_policy=offload)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, mp_policy=precision, offload_policy=offload)


def reduces_once(policy: nn.Module, settings: Optimisation, accelerator: Accelerator) -> bool:
    """Whether the gradients of a step's passes are reduced together; every process must call this."""
    wanted = 4 * sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    if accelerator.device.type == "cuda":
        memory = torch.cuda.get_device_properties(accelerator.device).total_memory
    else:
        memory = psutil.virtual_memory().total // accelerator.num_processes
    # Cards may differ; a process that reduced alone would wait for ever.
    smallest = min(gather_object([memory]))
    return reduced_once(settings, wanted, smallest)


@contextmanager
def unreduced(policy: nn.Module, accelerator: Accelerator, *, whole_sums: bool) -> Iterator[None]:
    """Inside, a backward pass adds to this process's gradients, and nothing is averaged over processes.

    ``whole_sums``: whether FSDP2 may hold whole gradients in each process; otherwise it reduces after each pass.
    """
    if not isinstance(policy, FSDPModule):
        with accelerator.no_sync(policy):
            yield
        return
    policy.set_requires_gradient_sync(not whole_sums)
    try:
        yield
    finally:
        policy.set_requires_gradient_sync(True)


def shard_frozen(model: nn.Module, settings: Sharding, accelerator: Accelerator) -> None:
    """Shard the decoder layers of ``model``, which is not trained, over all processes; each holds the rest of it.

    The rest is embeddings and output head, which are used outside of their modules. Raises as ``shard`` does.
    """
    mesh = mesh_of(accelerator)
    offload = CPUOffloadPolicy() if settings.offload else OffloadPolicy()
    for layer in _layers(model, plain_model(model), settings):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, offload_policy=offload)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(accelerator.device)


def _layers(root: nn.Module, model: Any, settings: Sharding) -> list[nn.Module]:
    if settings.policy == "NO_WRAP":
        return []
    if settings.layers is None:
        names = set(model._no_split_modules or ())
    else:
        names = {name.strip() for name in settings.layers.split(",")}
    found = [module for module in root.modules() if type(module).__name__ in names]
    if not found:
        raise UserError(
            "accelerate: fsdp_config.fsdp_transformer_layer_cls_to_wrap: no layer of this model is called "
            f"{' or '.join(sorted(names)) or '(nothing)'}; name the class of its decoder layers, or set "
            "fsdp_auto_wrap_policy: NO_WRAP"
        )
    return found


def whole(tensor: Tensor) -> Tensor:
    """Return all of ``tensor``, detached; every process must call this."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full.detach()
    return tensor.detach()


def save_gathered(file: Path, tensors: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Write whole tensors into ``file`` or its shards, in the main process; every process must call this.

    No more of them are whole in its memory than a few shards hold.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}

    def gather(names: Sequence[str]) -> dict[str, Tensor]:
        return gathered({name: tensors[name] for name in names}, accelerator)

    write_shards(file, sizes, gather, writes=accelerator.is_main_process)


def gathered(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Return whole tensors in the main process's CPU memory, nothing elsewhere. Every process must call this."""
    return {name: full.contiguous().cpu() for name, full in _one_by_one(tensors) if accelerator.is_main_process}


def _one_by_one(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name, whole(tensor)


def placed_like(full: Tensor, model: Tensor) -> Tensor:
    """Return ``full`` on the device of ``model``, and sharded like it. Every process must have the same ``full``."""
    moved = full.to(model.device)
    if not isinstance(model, DTensor):
        return moved
    return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)


def single(value: Tensor) -> float:
    """Return a number that may be sharded, such as a norm over sharded tensors."""
    return float(whole(value))


@torch.no_grad()
def write_back(trained: Mapping[str, nn.Parameter], model: nn.Module, accelerator: Accelerator) -> None:
    """Copy ``trained`` parameters into those of ``model`` with the same names, in the main process."""
    targets = dict(model.named_parameters())
    for name, tensor in _one_by_one(trained):
        if accelerator.is_main_process:
            targets[name].copy_(tensor)
