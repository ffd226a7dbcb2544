"""A Llama of a few thousand parameters in memory and random examples for it, for tests of training."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Optimisation
from pipeline.config.training import ReferenceSync
from pipeline.losses import Loss, load_preset
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.reference import reference_logps, with_references
from pipeline.training.train import Carry, Files, Placement, StepReport, Trainee, TrainResult, train
from pipeline.training.watch.course import Watching

VOCABULARY = 40


def tiny_llama(seed: int = 0, tied: bool = False, dropout: float = 0.0) -> LlamaForCausalLM:
    """Random float32 weights: hidden 32, two layers, one head, vocabulary 40."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            attention_dropout=dropout,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()


def random_ids(draw: random.Random, shortest: int, longest: int) -> tuple[int, ...]:
    return tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(shortest, longest)))


def random_pairs(count: int, seed: int = 0) -> list[Example]:
    """Pairs of ragged length without reference log-probabilities."""
    draw = random.Random(seed)
    return [
        Example.pair(f"pair{i}", random_ids(draw, 2, 6), random_ids(draw, 1, 9), random_ids(draw, 1, 9))
        for i in range(count)
    ]


def random_texts(count: int, seed: int = 0) -> list[Example]:
    draw = random.Random(seed)
    return [Example.text(f"text{i}", random_ids(draw, 2, 6), random_ids(draw, 1, 9)) for i in range(count)]


def random_unpaired(count: int, seed: int = 0) -> list[Example]:
    """Good and bad responses in turn, each with the response to the next prompt as its mismatched one."""
    draw = random.Random(seed)
    found = [
        Example.unpaired(f"single{i}", random_ids(draw, 2, 6), random_ids(draw, 1, 9), desirable=i % 2 == 0)
        for i in range(count)
    ]
    others = [*found[1:], found[0]]
    return [replace(e, mismatched=Continuation(other.responses[0].ids)) for e, other in zip(found, others, strict=True)]


def random_groups(count: int, sizes: Sequence[int] = (4,), seed: int = 0) -> list[Example]:
    """Groups whose numbers of responses are ``sizes`` in turn, with random rewards."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        size = sizes[i % len(sizes)]
        responses = [random_ids(draw, 1, 9) for _ in range(size)]
        found.append(Example.group(f"group{i}", random_ids(draw, 2, 6), responses, [draw.random() for _ in responses]))
    return found


def under_references(examples: Sequence[Example], *models: torch.nn.Module) -> list[Example]:
    """The examples with log-probabilities of all their continuations under ``models``."""
    return with_references(examples, [reference_logps(model, examples) for model in models])


def pairs_with_reference(model: torch.nn.Module, count: int, seed: int = 0) -> list[Example]:
    return under_references(random_pairs(count, seed), model)


def dpo(**overrides: object) -> Loss:
    return load_preset("dpo", **overrides)


def trained(
    model: Any,
    examples: Sequence[Example],
    loss: Loss,
    settings: Optimisation,
    *,
    seed: int = 0,
    reference: Any | None = None,
    starts_at_reference: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
    placement: Placement | None = None,
    watching: Watching | None = None,
    end_ids: frozenset[int] = frozenset(),
    reference_sync: ReferenceSync | None = None,
    **files: Path,
) -> TrainResult:
    """``train`` with its records filled in.

    ``files``: checkpoints, optimiser_from, optimiser_to, heads_from, heads_to.
    """
    carried = Carry(files.pop("optimiser_from", None), files.pop("heads_from", None))
    kept = Carry(files.pop("optimiser_to", None), files.pop("heads_to", None))
    places = Files(files.pop("checkpoints", None), carried, kept)
    assert not files, files
    trainee = Trainee(model, reference, starts_at_reference, end_ids, reference_sync=reference_sync)
    return train(
        trainee,
        examples,
        loss,
        settings,
        seed=seed,
        files=places,
        placement=placement,
        on_step=on_step,
        watching=watching,
    )
