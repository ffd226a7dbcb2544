"""Make a one-output sequence classifier from a causal language model, and save it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from pipeline.config import PretrainedModel
from pipeline.errors import UserError, first_lines
from pipeline.models.architectures import as_written, exact_attention, switch_noise_off
from pipeline.models.foreign import load_tokenizer, refused
from pipeline.storage.shards import SHARD_SIZE
from pipeline.types import derive_seed
from pipeline.types.counts import number_of


def load_start(settings: PretrainedModel, seed: int) -> tuple[Any, Any]:
    """Load the model, in float32, and the tokenizer that reward-model training starts from.

    A model without a one-output head gets one with random weights. Dropout in the model's config is set to 0, as in
    ``load_policy``. A tokenizer without a padding token pads with the end token, so that batches can be scored.

    Raises:
        UserError: no such model, a classifier with several outputs, weights that lack more than the head, or a
            tokenizer with neither a padding nor an end token.
    """
    path, options = settings.path, {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    torch.manual_seed(derive_seed(seed, "reward head"))
    tokenizer = load_tokenizer(path, "model.path: ", **options)
    with refused(f"model.path: {path}: cannot be loaded"):
        config = AutoConfig.from_pretrained(path, num_labels=1, **options)
        switch_noise_off(config)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    missing = sorted(key for key in loading["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if missing:
        raise UserError(
            f"model.path: {path}: the weights lack {number_of(len(missing), 'tensor')}:\n{first_lines(missing)}"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model.path: {path}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    exact_attention(model)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def save_reward_model(model: Any, tokenizer: Any, folder: Path, origin: str) -> None:
    """Write a folder for ``AutoModelForSequenceClassification``: safetensors, tokenizer, template.

    Dropout in its config is that of the folder (or hub name) ``origin``.
    """
    with as_written(model.config, origin):
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
