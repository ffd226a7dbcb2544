"""A small policy from scratch: a byte-level BPE tokenizer trained on texts, and a random Llama-architecture model.

Both are saved as an ordinary Hugging Face model folder, so downstream code needs no special case.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config import ScratchPolicy

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<pad>",
    "<bos>",
    "<end>",
    "<system>",
    "<user>",
    "<assistant>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_policy(texts: Iterable[str], settings: ScratchPolicy, seed: int, folder: Path) -> None:
    """Write tokenizer, config, chat template and randomly initialised weights to ``folder``.

    The tokenizer is byte-level BPE (Sennrich et al. 2016, over bytes), so it can encode every text,
    whatever ``texts`` hold. Weights depend only on ``settings``, the vocabulary's size and ``seed``; the
    caller's random state is untouched.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(texts, settings.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = LlamaConfig(
        # A few texts may yield fewer merges than the setting allows.
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=_feed_forward_size(settings.hidden_size),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // settings.head_size,
        num_key_value_heads=settings.hidden_size // settings.head_size,
        head_dim=settings.head_size,
        max_position_embeddings=settings.context,
        tie_word_embeddings=settings.tied_embeddings,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(shape)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(**special)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)


def _feed_forward_size(hidden_size: int) -> int:
    """8/3 of the hidden size (the gated layer's usual width), rounded up to a multiple of 32."""
    return -(-hidden_size * 8 // (3 * 32)) * 32


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Make the tokenizer of ``make_policy`` alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
