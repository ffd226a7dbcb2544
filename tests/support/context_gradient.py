"""Run by test_context.py in one process or several, which compute each row together: gradients, to a file."""

import sys
from typing import Any

import torch
import transformers as hf
from accelerate import Accelerator
from safetensors.torch import save_file

from pipeline.models.token_logps import TokenLogps
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.distributed.process_group import context_group
from pipeline.training.gradients import Objective, accumulate_gradient
from tests.support.loss_examples import examples_for, loss_named
from tests.support.tiny_training import VOCABULARY, tiny_llama

# Token log-probs, lengths, several turns' masks, the reference's whole distribution and states, statistics of a batch,
# heads, critics, groups, single responses.
LOSSES = ("dpo", "simpo", "tdpo2", "sparsepo", "mi_dpo", "beta_dpo", "kto", "hpo", "rpo_sqloo", "apa_token", "ganpo")
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 0},
    **{"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


def windows() -> Any:
    torch.manual_seed(0)
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, use_sliding_window=True)).eval()


def caps() -> Any:
    """Attention that PyTorch's kernels do not compute."""
    torch.manual_seed(0)
    settings = hf.Gemma2Config(**SIZES, attn_logit_softcapping=2.0, attn_implementation="eager")
    return hf.Gemma2ForCausalLM(settings).eval()


def checkpointed() -> Any:
    model = tiny_llama()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


MODELS = {"windows": windows, "caps": caps, "checkpointed": checkpointed}


def gradient(
    name: str, packing: bool, accelerator: Accelerator, size: int, model: Any = None
) -> tuple[dict[str, torch.Tensor], float]:
    loss, model = loss_named(name), tiny_llama() if model is None else model
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    context = context_group(accelerator, size)
    reference, wants = tiny_llama(seed=1), loss.needs.token_facts
    policy = TokenLogps(model, "float32", wants, reference, share_prompts=packing, context=context)
    objective = Objective(accelerator.prepare(policy), loss, companions, accelerator)
    examples: list[Example] = examples_for(loss, 7)
    facts = accumulate_gradient(objective, examples, Cut(3, None, packing, size))
    named = [*model.named_parameters(), *companions.named().items()]
    found = {part: p.grad for part, p in named if p.grad is not None}
    found["metrics"] = torch.tensor([facts.metrics[metric] for metric in sorted(facts.metrics)])
    found["tokens"] = torch.tensor([float(facts.response_tokens)])
    if facts.module_means is not None:
        found["means"] = facts.module_means
    return found, facts.loss


def main() -> None:
    accelerator = Accelerator(cpu=True)
    size = min(2, accelerator.num_processes)
    tensors: dict[str, torch.Tensor] = {}
    for packing in (True, False):
        runs = [(name, None) for name in LOSSES] + [("dpo", kind) for kind in MODELS]
        for name, kind in runs:
            model = None if kind is None else MODELS[kind]()
            found, loss = gradient(name, packing, accelerator, size, model)
            title = f"{name}.{kind}.{packing}"
            tensors |= {f"{title}.{part}": value.contiguous() for part, value in found.items()}
            tensors[f"{title}.loss"] = torch.tensor([loss])
    if accelerator.is_main_process:
        save_file(tensors, sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
