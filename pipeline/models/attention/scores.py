"""Attention with all its scores written out, for what PyTorch's kernels lack: a cap on scores, and sinks."""

import torch
from torch import Tensor


def attend_by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend; the softmax is in float32 or better.

    Args:
        query: [B, heads, T, D]; ``key`` and ``value`` [B, ..., S, D] may have fewer heads, a divisor.
        mask: [B or 1, 1, T, S] bool, true where a query sees a key, or values to add to the scores; None: causal, the
            last query being the last key.
        scaling: of the products; None: 1/√D.
        dropout: probability.
        cap: scores become cap · tanh(score / cap) (Gemma 2, arXiv:2408.00118, section 2).
        sinks: [heads] scores of one more key for each head, which every query sees and whose value is 0
            (StreamingLLM, arXiv:2309.17453; learned in gpt-oss).

    Returns:
        [B, heads, T, D of the values].
    """
    groups = query.shape[1] // key.shape[1]
    k, v = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ k.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if mask is None:
        asked, known = scores.shape[2:]
        mask = torch.ones((asked, known), dtype=torch.bool, device=scores.device).tril(known - asked)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        extra = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, extra], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return torch.nn.functional.dropout(weights, dropout).to(v.dtype) @ v
