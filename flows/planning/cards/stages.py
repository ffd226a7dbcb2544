"""What a run's other stages hold on a card: the engine, the reward model, and passes without gradient."""

from collections.abc import Mapping
from typing import Any

from flows.planning.cards.fitting import CONTEXT_BYTES
from flows.planning.cards.recipes import PartCounts, Recipe
from flows.planning.cards.traced import head_bytes
from flows.planning.memory import ITEM_BYTES, reward_model_parts
from flows.workers.pool.seating import ranks_of
from pipeline.config import DiffusersSampler, RunConfig, ServerSampler, TransformersSampler
from pipeline.models.weights.weight_format import WeightFormat
from pipeline.sampling.engine_args import is_quantised
from pipeline.training.distributed.passes import PASS_TOKENS

SAMPLING = "sampling"
# An estimate of what an engine takes for itself: its context, CUDA graphs and the largest batch of prompts.
ENGINE_BYTES = 2_000_000_000
# Width of what a decoder layer holds without gradient, in hidden sizes: as in ``reward_model_parts``.
_LAYER_WIDTH = 16


def other_stages(
    config: RunConfig, shape: Any, recipe: Recipe, counts: PartCounts, form: WeightFormat
) -> Mapping[str, Mapping[str, int]]:
    """Bytes by stage and part.

    Args:
        config: of the run.
        shape: the policy's transformers config.
        recipe: of the run's training.
        counts: of the policy.
        form: how weights are held that are not trained.
    """
    found: dict[str, Mapping[str, int]] = {}
    if config.mode == "iterative" and not (
        isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None
    ):
        found[SAMPLING] = _engine(config, shape, counts)
    if config.scorer is not None and (parts := reward_model_parts(config.scorer)):
        found["labelling"] = {**parts, "context": CONTEXT_BYTES}
    text = shape.get_text_config()
    held = form.quantisation
    frozen = Recipe("", form.dtype, recipe.adapter, None if held is None else held.bits, held is None or held.double)
    item = 4 if form.passes(recipe.matmul) == "float32" else 2
    longest = config.chat.max_prompt_tokens + max(config.sampling.max_tokens, config.chat.max_response_tokens)
    tokens = max(longest, PASS_TOKENS)
    layer = _LAYER_WIDTH * text.hidden_size * tokens * item
    found["scoring"] = {
        "weights": frozen.weight_bytes(counts),
        "16-bit copies": frozen.dequantised_bytes(counts),
        "activations": layer + head_bytes(text.vocab_size, tokens, item, blocks=False),
        "context": CONTEXT_BYTES,
    }
    return {stage: {name: size for name, size in parts.items() if size} for stage, parts in found.items()}


def _engine(config: RunConfig, shape: Any, counts: PartCounts) -> dict[str, int]:
    """An engine's weights, its own needs, and keys and values of one sequence of the greatest length, on each card."""
    text, sampler = shape.get_text_config(), config.sampler
    args = {} if isinstance(sampler, TransformersSampler | DiffusersSampler) else sampler.engine_args
    item = 2 if sampler.dtype == "auto" else ITEM_BYTES[sampler.dtype]
    weights = (counts.linear * (1 if is_quantised(args) and args.get("quantization") else item)) + (
        counts.head + counts.rest + counts.adapter
    ) * item
    cards = ranks_of(config)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    longest = config.chat.max_prompt_tokens + config.sampling.max_tokens + 1
    cache = 2 * text.num_hidden_layers * heads * size * item * longest
    return {"weights": weights // cards, "cache of one sequence": cache // cards, "engine": ENGINE_BYTES}
