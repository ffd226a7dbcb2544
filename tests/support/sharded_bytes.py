"""Run by test_fsdp.py in one process or two: bytes that each holds between steps of FSDP2, by part, as JSON lines."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.losses import load_preset
from pipeline.training.batches.examples import check_examples
from pipeline.training.distributed.launch import Launch, Sharding
from pipeline.training.distributed.process_group import join
from pipeline.training.steps import Steps
from pipeline.training.train import Placement, Trainee
from tests.support.loss_examples import examples_for, settings
from tests.support.tiny_training import tiny_llama

# Critics, and heads that read all layers of a reference.
CRITICS = {"adversary": {"hidden_size": 64, "layers": 2, "heads": 2}}
MASKS = {"weights": {"kind": "learned", "masks": "independent"}}


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes that this process has of ``tensors``."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def main() -> None:
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    world = int(os.environ["WORLD_SIZE"])
    accelerator = join(Launch(num_processes=world, use_cpu=True), rank, folder / f"store_{world}", 60)
    sizes = {}
    for name, changes in (("ganpo", CRITICS), ("sparsepo", MASKS)):
        loss, reference = load_preset(name, **changes), tiny_llama(seed=1)
        examples = examples_for(loss, 4, tiny_llama(seed=1))
        survey = check_examples(examples, loss.name, loss.needs)
        placement = Placement(accelerator, Sharding(fsdp_version=2))
        steps = Steps(Trainee(tiny_llama(), reference), examples, survey, loss, settings(batch_size=4), 0, placement)
        steps.take(0, check_start=False)
        state = [v for of in steps.trained.optimiser.state.values() for v in of.values() if isinstance(v, Tensor)]
        sizes[name] = {
            "policy": held(steps.model.parameters()),
            "reference": held(reference.parameters()),
            "modules": held([*steps.modules.parameters(), *steps.modules.named().values()]),
            "optimiser": held(value for value in state if value.numel() > 1),
        }
    (folder / f"bytes_{world}_{rank}.json").write_text(json.dumps(sizes))
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
