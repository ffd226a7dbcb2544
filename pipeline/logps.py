"""Per-token log-probabilities of given sequences under a causal language model.

Knows no loss. The output head runs on response positions only, in chunks whose logits are made
again in the backward pass, so logits of a whole batch are never held.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Precision = Literal["float32", "bfloat16"]

# Logits held at once: 2**26 float32 values, 256 MiB.
CHUNK_ELEMENTS = 2**26


def plain_model(model: Any) -> Any:
    """The transformers model inside an adapter wrapper, or ``model`` itself."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


class TokenLogps(nn.Module):
    """A policy as a module from token ids to log-probabilities of those tokens.

    A module of its own, so that whatever wraps it for several processes sees one ``forward``.
    """

    def __init__(self, model: Any, dtype: Precision = "float32") -> None:
        """``dtype``: of matrix products (autocast); log-softmax is float32 always."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        self._splits = head_splits(plain_model(model))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """log π(ids[:, t] | ids[:, :t]) where ``mask`` is true, 0 elsewhere: [R, T] float32, natural log.

        Args:
            ids: [R, T], padded at the right. Causal attention needs no mask for that: padding stands
                behind every token whose log-probability is asked for.
            mask: [R, T] bool; position 0 has nothing before it and is never asked for.
        """
        wanted = mask[:, 1:].reshape(-1).nonzero().squeeze(1)
        targets = ids[:, 1:].reshape(-1)[wanted]
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            logps = self._selected(ids[:, :-1], wanted, targets)
        rows, width = ids.shape
        flat = logps.new_zeros(rows * (width - 1)).index_copy(0, wanted, logps)
        return torch.cat([flat.new_zeros(rows, 1), flat.view(rows, width - 1)], dim=1)

    def _selected(self, inputs: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        if not self._splits:
            logits = self.model(input_ids=inputs, use_cache=False).logits
            return _log_softmax_at(logits.flatten(0, 1).index_select(0, wanted), targets)
        model = plain_model(self.model)
        hidden = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
        states = hidden.flatten(0, 1).index_select(0, wanted)
        return head_logps(model.get_output_embeddings(), states, targets)


def head_logps(head: nn.Linear, states: Tensor, targets: Tensor, elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Log-probabilities of ``targets`` [N] under ``head``'s softmax of ``states`` [N, H]: [N] float32.

    At most ``elements`` logits are held at once where N needs more than one chunk.
    """
    rows = max(1, elements // head.out_features)
    if len(states) <= rows:
        return _log_softmax_at(head(states), targets)

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        return _log_softmax_at(head(part), wanted)

    pieces = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
    return torch.cat([checkpoint(chunk, part, wanted, use_reentrant=False) for part, wanted in pieces])


def _log_softmax_at(logits: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def head_splits(model: Any) -> bool:
    """Whether logits are just the output head applied to the decoder's last hidden states.

    Asked of the model itself: some scale or cap their logits, and those take the slower path.
    """
    if any("softcap" in name and value for name, value in model.config.to_dict().items()):
        return False
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    ids = torch.arange(8, device=head.weight.device).unsqueeze(0) % head.out_features
    training = model.training
    model.eval()
    try:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
        alike = logits.shape[:-1] == hidden.shape[:-1]
        return alike and torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-5)
    finally:
        model.train(training)


def token_logps(model: Any, ids: Tensor, mask: Tensor, dtype: Precision = "float32") -> Tensor:
    """``TokenLogps`` once, for callers with a single batch."""
    logps: Tensor = TokenLogps(model, dtype)(ids, mask)
    return logps
