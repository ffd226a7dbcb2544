"""A Llama of a few thousand parameters in memory and random examples for it, for tests of training."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.losses import Loss, load_preset
from pipeline.reference import reference_logps, with_reference
from pipeline.train import Example

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
        Example(f"pair{i}", random_ids(draw, 2, 6), random_ids(draw, 1, 9), random_ids(draw, 1, 9))
        for i in range(count)
    ]


def pairs_with_reference(model: torch.nn.Module, count: int, seed: int = 0) -> list[Example]:
    pairs = random_pairs(count, seed)
    return with_reference(pairs, reference_logps(model, pairs))


def random_texts(count: int, seed: int = 0) -> list[Example]:
    draw = random.Random(seed)
    return [Example(f"text{i}", random_ids(draw, 2, 6), random_ids(draw, 1, 9)) for i in range(count)]


def dpo(**overrides: object) -> Loss:
    return load_preset("dpo", **overrides)
