"""A Llama of a few thousand parameters and its byte-level-BPE tokenizer, for tests that need real ones."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 320  # vLLM caches prefixes on CPU in blocks of 128 tokens: room for two and a response
TEXTS = [
    "the cat sat on the mat",
    "a dog ran to the old barn",
    "name[Aromi], food[Thai], area[city centre]",
    "Zizzi serves cheap food.",
] * 8
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(bos: bool = True, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """At most 300 tokens: <pad> <s> </s> <|user|> <|assistant|> <|system|> <|end|>, then bytes and merges."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def save_tiny_model(folder: Path, seed: int = 0, tied: bool = False, scale: float = 0.12) -> Path:
    """A random float32 Llama in ``folder``: hidden 64, two layers, two heads of 32, context 320.

    ``scale`` is the standard deviation of the weights: large enough that two seeds differ by whole nats.
    """
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=tied,
            initializer_range=scale,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reference_scores(folder: Path, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of tokens 1..T-1 by a plain float32 forward pass of transformers, one sequence at a time."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    with torch.no_grad():
        for ids in sequences:
            logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores.append(logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return scores


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"))
