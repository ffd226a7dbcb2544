"""Small heads on hidden states that some losses train together with the policy.

Heads are separate modules outside the policy: they have their own parameters in the optimiser and their own file,
and do not change the policy. Penalties on their outputs belong to the loss (pipeline/losses/). The hidden states of
a token are those that it is predicted from, as everywhere (pipeline/models/token_logps.py).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm, relu

from pipeline.errors import UserError

Layers = Sequence[Tensor]
HEADS_FILE = "heads.safetensors"


class LayerMixer(nn.Module):
    """One number per token from the hidden states of all layers: a linear map per layer, then a mix of the layers."""

    def __init__(self, layers: int, width: int) -> None:
        """``layers`` hidden states of ``width`` features each."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width))
        self.bias = nn.Parameter(torch.zeros(layers))
        self.mix = nn.Parameter(torch.full((1, layers), 1 / layers))

    def each(self, hidden: Layers) -> Tensor:
        """Return w_l · LN(h_l) + b_l of each layer: [R, T, L] float32 from L tensors [R, T, H].

        The norm has no scale and shift, since the linear map that follows has them.

        Raises:
            ValueError: the number of layers or their width differs from the head's.
        """
        if (len(hidden), hidden[0].shape[-1]) != tuple(self.weight.shape):
            raise ValueError(
                f"hidden states of {len(hidden)} layers of width {hidden[0].shape[-1]}; the head is for "
                f"{self.weight.shape[0]} of width {self.weight.shape[1]}"
            )
        values = [layer_norm(h.float(), h.shape[-1:]) @ w for h, w in zip(hidden, self.weight, strict=True)]
        return torch.stack(values, dim=-1) + self.bias


class MaskHead(LayerMixer):
    """A mask ≥ 0 over tokens, learned from the reference's hidden states (SparsePO, arXiv:2410.05102).

    ``mask = ReLU(Σ_l a_l ReLU(w_l · LN(h_l) + b_l))``, dropout after each ReLU. Departs from the published code in
    its start: w = 0, b = 1 and a = 1/L, so that every mask is 1 and the loss is TDPO1's at the first step. With
    random weights, half of the masks would start at 0, and some of these would get no gradient.
    """

    def __init__(self, layers: int, width: int, dropout: float = 0.0) -> None:
        """``dropout``: probability that a layer's value, or a token's mask, is left out."""
        super().__init__(layers, width)
        self.dropout = dropout
        nn.init.ones_(self.bias)

    def forward(self, hidden: Layers) -> Tensor:
        """Return masks [R, W] float32 ≥ 0 from L hidden states [R, W, H]; only the head gets a gradient."""
        values = dropout(relu(self.each(hidden)), self.dropout, self.training)
        return dropout(relu(values @ self.mix[0]), self.dropout, self.training)


class PriorHead(LayerMixer):
    """Learned prior's offset from the reference: log ζ = log π_ref + Σ_l a_l (w_l · LN(h_l) + b_l), in nats per token.

    The mutual-information view (arXiv:2501.01544) leaves ζ free and proposes to learn it; no form is published. This
    form starts as the reference itself (a = 0), and may become larger or smaller: ζ need not sum to 1.
    """

    def __init__(self, layers: int, width: int, seed: int = 0) -> None:
        """``seed``: of the linear maps, which must not all be 0 while a is 0."""
        super().__init__(layers, width)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.weight.copy_(torch.randn(layers, width, generator=draw) / width**0.5)
        nn.init.zeros_(self.mix)

    def forward(self, hidden: Layers) -> Tensor:
        """Return [R, W] float32, nats, from L reference hidden states [R, W, H]; only the head gets a gradient."""
        return self.each(hidden) @ self.mix[0]


class ValueHead(nn.Module):
    """Expected reward, from the policy's last hidden state: of a prompt (HPO, 2405.17956), a token (APA, 2306.02231).

    The state is detached: learning to predict rewards does not move the policy. Starts at 0.
    """

    def __init__(self, width: int) -> None:
        """``width``: features of a hidden state."""
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return [...] float32, in units of the reward, from the states [..., H] that the tokens are predicted from."""
        normed = layer_norm(states.detach().float(), states.shape[-1:])
        values: Tensor = self.linear(normed)
        return values.squeeze(-1)


def carried_value_head(folder: Path) -> ValueHead | None:
    """The value head of tokens among the heads that a round left in ``folder``; None if there are no heads.

    Raises:
        UserError: they cannot be read, or have no such head.
    """
    file = folder / HEADS_FILE
    if not file.exists():
        return None
    try:
        tensors = load_file(file)
        weight, bias = tensors["token_value.linear.weight"], tensors["token_value.linear.bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file}: cannot read a value head of tokens ({error})") from None
    head = ValueHead(weight.shape[1])
    head.linear.load_state_dict({"weight": weight, "bias": bias})
    return head


@torch.no_grad()
def activation_mask(hidden: Layers, mask: Tensor) -> Tensor:
    """Mask tokens by how strongly they activate the reference; nothing is learned (MaPO, arXiv:2410.05102).

    The size of a layer's hidden state (root mean square over its features) is z-normalised over the tokens of the
    response. Its mean over the layers is rescaled so that the response's smallest token has 0 and its largest 1. If all
    tokens of a response are equal in size (such as a single token), all have 1.

    Departs from the published code, which takes the signed mean over features of every kind of activation inside the
    layers and divides 0 by 0 if tokens are equal. Normalising comes before the mean over layers: otherwise the
    rescaling would undo it, and the deepest layers, with the largest states, would dominate.

    Args:
        hidden: L tensors [R, T, H].
        mask: [R, T] bool, true at response tokens.

    Returns:
        [R, T] float32 in [0, 1], 0 outside ``mask``.
    """
    count = mask.sum(1, keepdim=True).clamp(min=1)

    def over_tokens(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0).sum(1, keepdim=True) / count

    total = torch.zeros(mask.shape, device=mask.device)
    for layer in hidden:
        size = layer.float().pow(2).mean(-1).sqrt()
        middle = over_tokens(size)
        spread = over_tokens((size - middle).pow(2)).sqrt()
        # Sizes that differ only by rounding count as equal.
        differ = spread > 1e-5 * middle
        total = total + torch.where(differ, (size - middle) / torch.where(differ, spread, 1), 0) / len(hidden)
    low = total.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = total.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    scaled = torch.where(high > low, (total - low) / (high - low), 1.0)
    return scaled.masked_fill(~mask, 0)
