"""Run by test_sharding.py in two processes: some steps with a model or its optimiser cut, to files in a folder."""

import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.config import Lora
from pipeline.models.weights.lora import add_adapter
from pipeline.training.distributed.launch import Launch, Sharding, Zero
from pipeline.training.distributed.process_group import join
from pipeline.training.train import Placement, StepReport
from tests.support.loss_examples import examples_for, loss_named, settings
from tests.support.tiny_training import tiny_llama, trained

CUTS: dict[str, Sharding | Zero] = {
    "fsdp2": Sharding(fsdp_version=2),
    "zero1": Zero(zero_stage=1),
    "zero2": Zero(zero_stage=2),
    "zero2_offload": Zero(zero_stage=2, offload_optimizer_device="cpu"),
}
# name -> loss, tied embeddings, adapter, further settings
RUNS: dict[str, tuple[str, bool, bool, dict[str, Any]]] = {
    "tied": ("dpo", True, False, {"gradient_checkpointing": True}),
    "ganpo": ("ganpo", False, False, {}),
    "masks": ("sparsepo", False, False, {}),
    "live": ("tdpo2", True, False, {}),
    "adapter": ("tdpo2", False, True, {}),
    "resumed": ("beta_dpo", False, False, {"checkpoint_every": 2}),
}


AUXILIARY = ("ganpo", "masks")


def die(report: StepReport) -> None:
    if report.step == 3:
        os._exit(9)


def steps(
    name: str, folder: Path, accelerator: Any = None, sharding: Sharding | Zero | None = None, **options: Any
) -> None:
    """Four steps of two epochs; writes the weights, and the optimiser's state beside them."""
    preset, tied, adapter, further = RUNS[name]
    loss, model = loss_named(preset), tiny_llama(tied=tied)
    examples = examples_for(loss, 7, tiny_llama(seed=1))
    trained(
        add_adapter(model, Lora(rank=2), seed=3) if adapter else model,
        examples,
        loss,
        settings(batch_size=4, micro_batch_size=1, warmup=0, epochs=2.0, learning_rate=1e-4, **further),
        seed=0,
        reference=None if adapter else tiny_llama(seed=1),
        optimiser_to=folder / f"{name}.optimiser.safetensors",
        heads_to=folder / f"{name}.heads",
        placement=None if accelerator is None else Placement(accelerator, sharding),
        **options,
    )
    if accelerator is None or accelerator.is_main_process:
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, folder / f"{name}.safetensors")


def main() -> None:
    rank, folder, cut, again = int(sys.argv[1]), Path(sys.argv[2]), CUTS[sys.argv[3]], len(sys.argv) > 4
    launch = Launch(num_processes=2, use_cpu=True)
    accelerator = join(launch, rank, folder / f"store_{again}", 60)
    options: dict[str, Any] = {"checkpoints": folder / "kept"}
    if again:
        steps("resumed", folder, accelerator, cut, **options)
        return
    for name in RUNS:
        # Heads and critics are not trained with DeepSpeed.
        if name not in AUXILIARY or isinstance(cut, Sharding):
            steps(name, folder, accelerator, cut)
    if rank == 0:
        (folder / "resumed.safetensors").rename(folder / "whole.safetensors")
    steps("resumed", folder, accelerator, cut, on_step=die, **options)


if __name__ == "__main__":
    main()
