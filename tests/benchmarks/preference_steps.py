"""One side of the training benchmark, in a process of its own: optimiser steps over pairs, timed, with peak memory.

Both sides train the same random Llama with DPO on the same pairs and the same reference log-probabilities, which are
given: AdamW (fused), the same rate, clipping, dtype, global batch and number of steps, no gradient checkpointing.
bfloat16 is autocast over float32 weights on both sides.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tests.benchmarks.generated_pairs import Pair, generate_pairs, room_for_rows
from tests.benchmarks.isolated import Facts, cores, serve
from tests.benchmarks.llama_shapes import SHAPES, Shape, random_llama, unavoidable_operations
from tests.benchmarks.matrix_rate import matrix_rate
from tests.benchmarks.process_memory import PeakMemory

BETA, RATE = 0.1, 1e-6
# Of the warming run: what allocators and compiled kernels need, before anything is timed.
WARM_PAIRS = 8
# (seconds of the steps, mean loss)
Outcome = tuple[float, float]
Steps = Callable[[LlamaForCausalLM, list[Pair], Facts, Path], Outcome]


def our_steps(model: LlamaForCausalLM, pairs: list[Pair], job: Facts, folder: Path) -> Outcome:
    """Steps of ``pipeline.training.train`` with its default batching."""
    from pipeline.losses import load_preset
    from pipeline.training.train import StepReport, Trainee, train

    examples, settings = our_examples(pairs, job), our_settings(job)
    reports: list[StepReport] = []
    train(Trainee(model), examples, load_preset("dpo", beta=BETA), settings, seed=0, on_step=reports.append)
    return sum(r.seconds for r in reports), sum(r.loss for r in reports) / len(reports)


def our_examples(pairs: list[Pair], job: Facts) -> list[Any]:
    """The trainer's examples of ``pairs``."""
    from dataclasses import replace

    from pipeline.training.batches.examples import Example

    nats = reference_nats(SHAPES[job["shape"]])
    examples = []
    for index, pair in enumerate(pairs):
        example = Example.pair(str(index), pair.prompt, pair.chosen, pair.rejected)
        given = [replace(c, references=((nats,) * len(c.ids),)) for c in example.continuations]
        examples.append(example.with_continuations(given))
    return examples


def our_settings(job: Facts) -> Any:
    """The trainer's settings."""
    from pipeline.config import Optimisation

    return Optimisation(
        batch_size=job["batch_size"],
        learning_rate=RATE,
        schedule="constant",
        warmup=0.0,
        dtype=job["dtype"],
        **job.get("ours", {}),
    )


def planned_mib(config: Any, pairs: list[Pair], job: Facts) -> float:
    """What ``prefloop plan`` says that these steps add to a process that holds the model, in MiB."""
    from flows.planning.measure import training_memory
    from flows.planning.probe import Probed
    from pipeline.losses import load_preset

    probed = Probed(config, load_preset("dpo", beta=BETA))
    return training_memory(probed, our_examples(pairs, job), our_settings(job), seed=0)[0].above_model / 1024**2


def their_steps(model: LlamaForCausalLM, pairs: list[Pair], job: Facts, folder: Path) -> Outcome:
    """Steps of TRL's DPOTrainer, its own padding and micro-batch ``job["micro_batch"]``."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from tests.benchmarks.trl_steps import GivenReferencesTrainer, StepsTimer, bare_tokenizer

    nats, micro = reference_nats(SHAPES[job["shape"]]), min(job["micro_batch"], len(pairs))
    rows = {
        "prompt_ids": [list(pair.prompt) for pair in pairs],
        "chosen_ids": [list(pair.chosen) for pair in pairs],
        "rejected_ids": [list(pair.rejected) for pair in pairs],
        "ref_chosen_logps": [nats * len(pair.chosen) for pair in pairs],
        "ref_rejected_logps": [nats * len(pair.rejected) for pair in pairs],
    }
    settings = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, min(job["batch_size"], len(pairs)) // micro),
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        bf16=job["dtype"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=0,
    )
    timer = StepsTimer()
    vocabulary = SHAPES[job["shape"]].vocabulary
    trainer = GivenReferencesTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(rows),
        processing_class=bare_tokenizer(vocabulary),
        callbacks=[timer],
    )
    outcome = trainer.train()
    return timer.seconds, float(outcome.training_loss)


def reference_nats(shape: Shape) -> float:
    """What a model that knows nothing gives a token, which random weights nearly do."""
    return -math.log(shape.vocabulary)


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Pairs a second, MiB, and for our side the share of the machine's rate."""
    torch.set_num_threads(cores())
    steps: Steps = our_steps if job["side"] == "ours" else their_steps
    shape = SHAPES[job["shape"]]
    _import_side(job["side"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = matrix_rate(job["dtype"], device)
    model = random_llama(shape, room_for_rows(job["prompt"], job["response"]))
    torch.nn.Module.to(model, device)
    memory = PeakMemory(cuda=device.type == "cuda")
    pairs = generate_pairs(job["pairs"], job["prompt"], job["response"], shape.vocabulary, job["seed"])
    # On CUDA kernels are compiled for the shapes that come first.
    warm = job["batch_size"] if device.type == "cuda" else min(WARM_PAIRS, len(pairs) // 2)
    steps(model, pairs[:warm], job, folder)
    gc.collect()
    start = time.perf_counter()
    seconds, loss = steps(model, pairs, job, folder)
    whole = time.perf_counter() - start
    facts: Facts = {"seconds": seconds, "whole_seconds": whole, "pairs_per_second": len(pairs) / seconds, "loss": loss}
    facts |= {"memory_mib": memory.above(), "memory_source": memory.source}
    if job["side"] == "ours" and job["group"] != "growth":
        facts["planned_mib"] = planned_mib(model.config, pairs, job)
        facts["plan_ratio"] = facts["planned_mib"] / facts["memory_mib"]
    # A neighbour's work slows one or the other; the faster one is nearer to what the machine can do.
    operations, rate = unavoidable_operations(shape, pairs), max(before, matrix_rate(job["dtype"], device))
    return facts | {"operations": operations, "matrix_rate": rate, "share": operations / seconds / rate}


def _import_side(side: str) -> None:
    """Import what the side imports late, so that it counts as the bare process."""
    if side == "ours":
        import pipeline.losses
        import pipeline.training.train  # noqa: F401
    else:
        import datasets  # noqa: F401

        import tests.benchmarks.trl_steps  # noqa: F401


if __name__ == "__main__":
    serve(measure)
