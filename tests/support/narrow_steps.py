"""Run by test_narrow_shards.py in two processes: some steps in bfloat16 of a model cut by FSDP2; facts to a file."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from pipeline.training.distributed.launch import Launch, Sharding
from pipeline.training.distributed.process_group import join
from pipeline.training.train import Placement, StepReport
from tests.support.loss_examples import settings
from tests.support.tiny_training import dpo, pairs_with_reference, trained


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=40,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(shape).eval()


def losses(accelerator: Any = None, sharding: Sharding | None = None) -> dict[str, Any]:
    """The loss of each of four steps, and the dtypes in which layers had their weights while they ran."""
    policy, found, dtypes = model(), [], set[str]()
    examples = pairs_with_reference(model(), 8)

    def see(layer: nn.Module, _: Any) -> None:
        if isinstance(layer, LlamaMLP) and torch.is_grad_enabled():
            dtypes.update(str(p.dtype).removeprefix("torch.") for p in layer.parameters())

    hook = nn.modules.module.register_module_forward_pre_hook(see)

    def on_step(report: StepReport) -> None:
        found.append(report.loss)

    how = settings(batch_size=4, micro_batch_size=1, epochs=2.0, learning_rate=1e-3, warmup=0, dtype="bfloat16")
    trained(
        policy,
        examples,
        dpo(),
        how,
        placement=None if accelerator is None else Placement(accelerator, sharding),
        on_step=on_step,
    )
    hook.remove()
    return {"losses": found, "dtypes": sorted(dtypes)}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    accelerator = join(Launch(num_processes=2, use_cpu=True), rank, folder / "store", 60)
    found = losses(accelerator, Sharding(fsdp_version=2))
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
