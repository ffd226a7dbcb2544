"""Rewards of a sequence classifier, one for each row of tokens.

Decoder classifiers (Llama, Qwen2, GPT-2 and similar) apply a linear ``score`` to the hidden state of the last token.
They take packed streams, so that a prompt is computed once for all of its responses. Others get padded rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.attention.last_layer import no_more_than, places, position_wise
from pipeline.models.attention.packing import Packed
from pipeline.models.attention.shared_prompts import ROUNDING, share, stream_arguments, why_not_shared
from pipeline.models.token_logps import TokenFacts
from pipeline.models.weights.lora import plain_model
from pipeline.models.weights.weight_format import Precision


class RowScores(nn.Module):
    """A sequence classifier as a module from token ids to rewards.

    A separate module, like ``TokenLogps``, which it can replace: the sum of its ``forward`` over a response is the
    reward of the row.

    Attributes:
        padded_because: why rows are padded; None: prompts are shared, without padding.
    """

    def __init__(
        self, model: Any, outputs: Mapping[int, float], dtype: Precision = "float32", share_prompts: bool = False
    ) -> None:
        """See the class.

        Args:
            model: a transformers model for sequence classification.
            outputs: the reward is the sum of these logits, each times its weight.
            dtype: of matrix products (autocast) where the weights are float32.
            share_prompts: take packed streams, where the model can.
        """
        super().__init__()
        self.model = model
        self.outputs = dict(outputs)
        self.dtype = dtype
        self.padded_because: str | None = "packing is off"
        # Modules that compute only the ends of rows.
        self._narrow: tuple[nn.Module, ...] = ()
        if share_prompts:
            self.padded_because = _why_padded(plain_model(model))
            if self.padded_because is None:
                self._narrow = position_wise(plain_model(model).base_model)

    def forward(self, ids: Tensor, mask: Tensor, packed: Packed | None = None) -> TokenFacts:
        """Rewards of rows, in the form that losses read.

        Args:
            ids: [R, T], padded at the right.
            mask: [R, T] bool, true at response tokens; each row has at least one.
            packed: the same rows as one stream, which the model then gets instead.

        Returns:
            facts whose ``policy`` [R, T] is the reward at the last token of a response and 0 elsewhere.
        """
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        rewards = self.of_rows(ids, last + 1) if packed is None else self.of_stream(packed)
        return TokenFacts(policy=torch.zeros(mask.shape, device=ids.device).scatter(1, last[:, None], rewards[:, None]))

    def of_stream(self, packed: Packed) -> Tensor:
        """[R] float32 rewards of packed rows; only for models that share prompts."""
        multiple = ROUNDING.get((packed.ids.device.type, self.dtype), 1)
        stream = packed.rounded(multiple)
        total = len(stream.ids)
        asked = no_more_than(places(packed.ends, total, multiple), total, plain_model(self.model), self._narrow)
        with self._autocast(packed.ids.device), asked:
            return self._pooled(stream_arguments(stream), lambda states: states[0].index_select(0, packed.ends))

    def of_rows(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[R] float32 rewards of rows padded at the right, ``ids`` [R, T], of ``lengths`` [R] tokens each."""
        place = torch.arange(ids.shape[1], device=ids.device)
        arguments = {"input_ids": ids, "attention_mask": (place < lengths[:, None]).long()}
        with self._autocast(ids.device):
            if _pools_at_the_end(plain_model(self.model)):
                rows = torch.arange(len(ids), device=ids.device)
                return self._pooled(arguments, lambda states: states[rows, lengths - 1])
            return self._mixed(self.model(**arguments).logits)

    def _pooled(self, arguments: dict[str, Any], ends: Any) -> Tensor:
        # Not the model's own ``forward``, which assumes that padding begins at the first padding id.
        model = plain_model(self.model)
        states = model.base_model(**arguments, use_cache=False).last_hidden_state
        return self._mixed(model.score(ends(states)))

    def _mixed(self, logits: Tensor) -> Tensor:
        weights = logits.new_zeros(logits.shape[1], dtype=torch.float32)
        weights[list(self.outputs)] = weights.new_tensor(list(self.outputs.values()))
        # Not a matrix product, which autocast would round to 16 bits.
        return (logits.float() * weights).sum(-1)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")


def padding_id(model: Any) -> int | None:
    """The id after which a decoder classifier ignores the rest of a row; None if it has no such id.

    Such a model pools at the last token with another id, even if the text itself ends with this one.
    """
    plain = plain_model(model)
    if not _pools_at_the_end(plain):
        return None
    found: int | None = plain.config.get_text_config().pad_token_id
    return found


def embedding_count(model: Any) -> int:
    """Return how many tokens the model can read: the rows of its input embeddings."""
    return int(plain_model(model).get_input_embeddings().weight.shape[0])


def _pools_at_the_end(model: Any) -> bool:
    return isinstance(getattr(model, "score", None), nn.Linear)


def _why_padded(model: Any) -> str | None:
    """Why prompts cannot be shared; if they can, switch the model to shared attention and return None."""
    if not _pools_at_the_end(model):
        return f"{type(model).__name__} has no linear score at the last token"
    reason = why_not_shared(model.base_model)
    if reason is None:
        share(model.base_model)
    return reason
