"""Run by test_gradient_sync.py in two processes: one step of several passes, cut by FSDP2; its gradient and traffic."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.training.distributed.launch import Launch, Sharding
from pipeline.training.distributed.process_group import join
from pipeline.training.train import Placement
from tests.support.loss_examples import settings
from tests.support.narrow_steps import model
from tests.support.tiny_training import dpo, pairs_with_reference, trained


class Reductions(TorchDispatchMode):
    """Counts reduce-scatters."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def step(file: Path, sync: Literal["auto", "step", "pass"] = "auto", accelerator: Any = None) -> int:
    """Take a step of 8 pairs, 1 a pass, and write AdamW's state; return how often gradients were reduced."""
    how = settings(batch_size=8, micro_batch_size=1, warmup=0, max_grad_norm=1e9, gradient_sync=sync, packing=False)
    with Reductions() as seen:
        trained(
            model(),
            pairs_with_reference(model(), 8),
            dpo(),
            how,
            optimiser_to=file,
            placement=None if accelerator is None else Placement(accelerator, Sharding(fsdp_version=2)),
        )
    return seen.count


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    accelerator = join(Launch(num_processes=2, use_cpu=True), rank, folder / "store", 60)
    kinds: tuple[Literal["auto", "step", "pass"], ...] = ("auto", "step", "pass")
    found = {kind: step(folder / f"{kind}.safetensors", kind, accelerator) for kind in kinds}
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
