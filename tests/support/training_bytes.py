"""A real training step on the CPU, with the bytes that it holds."""

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from flows.planning.cards.recipes import Recipe
from flows.planning.cards.traced import LiveBytes, PassShape
from pipeline.config import Lora, Optimisation
from pipeline.models.weights.lora import add_adapter
from pipeline.training.batches.examples import Example, check_examples
from pipeline.training.distributed.launch import Placement
from pipeline.training.steps import Steps
from pipeline.training.trainee import Trainee
from tests.support.tiny_training import dpo

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class HeldBytes:
    """Bytes of a step: summed storages, and the largest sum of everything temporary."""

    weights: int
    gradients: int
    optimiser: int
    activations: int


def small_llama(hidden: int, feed_forward: int, vocabulary: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


def measured_step(shape: Any, recipe: Recipe, lora: Lora, pass_: PassShape) -> HeldBytes:
    """The second step of a run, with two passes of ``pass_``: gradients and moments are there."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(shape).to(DTYPES[recipe.held])
    if recipe.adapter:
        model = add_adapter(model, lora, seed=0)
    return measured_training(model, recipe, pass_)


def measured_training(model: Any, recipe: Recipe, pass_: PassShape) -> HeldBytes:
    """``measured_step`` of a model with its adapter."""
    examples = [*_pairs(2 * pass_.trees, pass_.prompt, pass_.response)]
    settings = Optimisation(
        batch_size=2 * pass_.trees,
        micro_batch_size=pass_.trees,
        micro_batch_tokens=10**6,
        packing=pass_.packed,
        dtype=recipe.matmul,
        gradient_checkpointing=pass_.checkpointing,
        max_steps=3,
        epochs=3,
        optimiser=recipe.optimiser,
    )
    loss = dpo()
    live = LiveBytes([*model.parameters(), *model.buffers()])
    survey = check_examples(examples, loss.name, loss.needs)
    steps = Steps(Trainee(model), examples, survey, loss, settings, 0, Placement(Accelerator(cpu=True)))
    optimiser: Any = steps.trained.optimiser
    gradients: list[int] = []
    optimiser.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(_storages(p.grad for p in model.parameters() if p.grad is not None))
    )
    with live:
        steps.take(0, check_start=False)
        state = _storages(t for of in optimiser.state.values() for t in of.values() if isinstance(t, Tensor))
        before = live.now
        live.restart()
        steps.take(1, check_start=False)
    return HeldBytes(_storages(model.parameters()), gradients[-1], state, live.peak - before - gradients[-1])


def _pairs(count: int, prompt: int, response: int) -> Any:
    draw = random.Random(0)
    for number in range(count):
        pieces = [tuple(draw.randrange(3, 500) for _ in range(length)) for length in (prompt, response, response)]
        made = Example.pair(str(number), *pieces)
        yield made.with_continuations([replace(c, references=((-1.0,) * response,)) for c in made.continuations])


def _storages(tensors: Any) -> int:
    return sum({s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())
