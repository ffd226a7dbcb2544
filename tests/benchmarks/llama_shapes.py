"""Llama shapes with random weights, and the arithmetic that training them cannot do without."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.benchmarks.generated_pairs import Pair

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; heads are all of 64 channels unless the model is narrower."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    tied: bool

    @property
    def heads(self) -> int:
        """Attention heads, keys and values as many as queries."""
        return max(1, self.hidden // 64)

    @property
    def layer_weights(self) -> int:
        """Parameters of the linear layers between lookup and head."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)


SHAPES = {
    "13.8M": Shape(8192, 384, 1024, 6, tied=True),
    "wide-vocabulary": Shape(128_000, 64, 256, 2, tied=True),
    "tiny": Shape(512, 64, 128, 2, tied=True),
    "61M": Shape(1000, 640, 1728, 12, tied=False),
    "0.5B": Shape(32_000, 1280, 3456, 24, tied=False),
    "1.5B": Shape(32_000, 2048, 5504, 28, tied=False),
}


def random_llama(shape: Shape, longest: int) -> "LlamaForCausalLM":
    """A model in float32 with weights of seed 0; ``longest``: positions it must have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    make: Any = LlamaForCausalLM
    model: LlamaForCausalLM = make(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=longest,
            tie_word_embeddings=shape.tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    return model


def unavoidable_operations(shape: Shape, pairs: list[Pair]) -> float:
    """Floating-point operations of one forward and backward pass over ``pairs``, nothing done twice.

    A multiplication and an addition are two operations. Counted are 6 a parameter of a linear layer and distinct token
    (2 forward, 4 backward), each pair's prompt once; the output head at the positions that predict a response token
    alone; and of attention the two products forward and four backward, over the keys that a causal mask lets a query
    see: 12 · hidden · layers a query-key pair. Norms, rotations, softmax, the loss, the lookup, the optimiser and
    anything computed again count nothing.
    """
    total = 0.0
    for pair in pairs:
        prompt, answers = len(pair.prompt), [len(pair.chosen), len(pair.rejected)]
        tokens = prompt + sum(answers)
        visible = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in answers)
        total += 6.0 * shape.layer_weights * tokens
        total += 6.0 * shape.hidden * shape.vocabulary * sum(answers)
        total += 12.0 * shape.hidden * shape.layers * visible
    return total
