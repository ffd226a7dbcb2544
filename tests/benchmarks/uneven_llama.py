"""A Llama of random weights whose answers end at random, as answers of people's models do: short ones and long ones."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tests.benchmarks.llama_shapes import Shape, random_llama

# Mean length of an answer in tokens: an eighth of them is longer than twice that.
MEAN_TOKENS = 100
# Large beside all other channels, so that what the head reads of it is nearly the same at each position.
CONSTANT = 5.0


def save_uneven_llama(shape: Shape, tokenizer_of: Path, folder: Path, longest: int) -> int:
    """Write the model and the tokenizer of ``tokenizer_of`` to ``folder``; return the number of parameters.

    At each position the end has the probability 1 / ``MEAN_TOKENS``. One channel is constant from the lookup to the
    head, and only the end token's row of the head reads it. The vocabulary is the tokenizer's. ``longest``: positions
    of prompt and answer.
    """
    assert not shape.tied, "the head reads what the lookup does not"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    end, words = tokenizer.eos_token_id, len(tokenizer)
    model = random_llama(replace(shape, vocabulary=words), longest)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, -1] = CONSTANT
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[-1] = 0.0
            layer.mlp.down_proj.weight[-1] = 0.0
        head = model.lm_head.weight
        head[:, -1] = 0.0
        head[end] = 0.0
        # The last norm brings the channel to about the root of the width.
        head[end, -1] = math.log((words - 1) / (MEAN_TOKENS - 1)) / math.sqrt(shape.hidden)
    for settings in (model.config, model.generation_config):
        settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, end
        settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())
