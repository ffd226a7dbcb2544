"""Run by test_train_processes.py in several processes: one step of training, weights to the file given."""

import sys

from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_training import dpo, pairs_with_reference, tiny_llama

from pipeline.config import Optimisation
from pipeline.train import train

model = tiny_llama()
accelerator = Accelerator(cpu=True)
settings = Optimisation(batch_size=7, micro_batch_size=2, learning_rate=1e-3, warmup=0, max_steps=2, epochs=2.0)
pairs = pairs_with_reference(tiny_llama(seed=1), 7)
result = train(model, pairs, dpo(), settings, seed=0, accelerator=accelerator)
if accelerator.is_main_process:
    losses = [str(report.loss) for report in result.history]
    save_file(
        {name: p.detach() for name, p in model.named_parameters()},
        sys.argv[1],
        metadata={"processes": str(accelerator.num_processes), "losses": " ".join(losses)},
    )
accelerator.end_training()
