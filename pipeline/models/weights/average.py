"""The running mean of policies, taken in float32 whatever they are stored in."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.loading.companions import copy_companions
from pipeline.models.weights.shard_files import Gather, ShardReader, opened_files, write_shards
from pipeline.storage.atomic import write_json
from pipeline.storage.integrity import MASTERS
from pipeline.storage.shards import planned_shards

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# As safetensors names them.
_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}


def average_policies(old: Path, new: Path, decay: float, out: Path) -> None:
    """Write to ``out`` the policy ``decay`` · old + (1 − decay) · new, tensor by tensor.

    Of a policy with float32 weights beside its own, these are read. The mean is stored in the dtypes of ``new``; if any
    has 16 bits, the float32 mean stands beside it, in the folder ``MASTERS``, for the next mean to be taken of: a small
    change of the mean is less than what rounding loses. ``out`` gets the config and the tokenizer of ``new``.

    Raises:
        UserError: the two folders hold tensors with different names or shapes.
    """
    with opened_files(_widest(old)) as before, opened_files(_widest(new)) as after:
        _require_alike(old, before, new, after)
        with opened_files(_own(new)) as stored:
            dtypes = {name: _NARROW.get(stored.dtype_name(name), torch.float32) for name in stored}

        def mean(names: Sequence[str]) -> dict[str, Tensor]:
            return {name: torch.lerp(after[name].float(), before[name].float(), decay) for name in names}

        def rounded(names: Sequence[str]) -> dict[str, Tensor]:
            return {name: tensor.to(dtypes[name]) for name, tensor in mean(names).items()}

        sizes = {name: math.prod(after.shape(name)) * 4 for name in after}
        out.mkdir(parents=True, exist_ok=True)
        copy_companions(str(new), out)
        if any(dtype != torch.float32 for dtype in dtypes.values()):
            _write(out / MASTERS, new, sizes, mean)
        _write(out, new, sizes, rounded)


def _own(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _widest(folder: Path) -> list[Path]:
    """A policy's files; those of float32 weights come last, and count."""
    return [*_own(folder), *_own(folder / MASTERS)]


def _require_alike(old: Path, before: ShardReader, new: Path, after: ShardReader) -> None:
    for name in after:
        if name not in before:
            raise UserError(f"{old}: has no tensor {name}, which {new} has; averaging needs one architecture")
        if before.shape(name) != after.shape(name):
            raise UserError(f"{old}: {name} is {before.shape(name)}, in {new} {after.shape(name)}")


def _write(folder: Path, new: Path, sizes: Mapping[str, int], gather: Gather) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(new / "config.json", folder / "config.json")
    write_shards(folder / _WEIGHTS, sizes, gather, metadata={"format": "pt"})
    plan = planned_shards(folder / _WEIGHTS, sizes)
    if len(plan) > 1:
        where = {name: file.name for file, names in plan for name in names}
        write_json(folder / _INDEX, {"metadata": {}, "weight_map": where})
