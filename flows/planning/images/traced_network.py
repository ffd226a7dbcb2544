"""Memory of a diffusion model's passes, from the network's own code on tensors without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flows.planning.cards.traced import LiveBytes, fill_without_data
from pipeline.config import Lora
from pipeline.images.image_adapter import add_image_adapter
from pipeline.images.networks import NETWORKS, Conditions, condition_kind, input_shape, plain_network, predict
from pipeline.models.foreign import model_settings

# Positions of a text encoder's states; Stable Diffusion 3 adds T5's.
_STATES, _T5_STATES = 77, 256


@dataclass(frozen=True, slots=True)
class TracedNetwork:
    """What a network and its passes hold.

    Attributes:
        total, trained: parameters, with those of an adapter.
        activations: bytes of a forward and a backward pass at their peak, besides weights and gradients.
        forward: bytes of a pass without gradient at its peak, by its rows.
    """

    total: int
    trained: int
    activations: int
    forward: Mapping[int, int]


def trace_network(
    settings: Mapping[str, Any], lora: Lora | None, *, trained: int, forward: tuple[int, ...]
) -> TracedNetwork:
    """Trace the network with the diffusers config ``settings``.

    Args:
        settings: of the network.
        lora: of the adapter; None: all weights are trained.
        trained: rows of a pass with gradient.
        forward: rows of passes without.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        make: Any = NETWORKS[str(settings["_class_name"])].from_config
        network = make(settings).eval()
        if lora is not None:
            network = add_image_adapter(network, lora, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_without_data(network)
        parameters = [*network.parameters()]
        # The second pass adds to the gradients of the first.
        _backward(network, trained)
        with LiveBytes(parameters) as live:
            _backward(network, trained)
        seen = {rows: _forward(network, rows) for rows in forward}
    return TracedNetwork(
        sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad), live.peak, seen
    )


def decoder_bytes(folder: Path, shape: tuple[int, int, int], rows: int) -> int:
    """Return what decoding ``rows`` latents of ``shape`` holds at its peak besides weights; 0 without autoencoder."""
    file = folder / "vae" / "config.json"
    if not file.is_file():
        return 0
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        make: Any = AutoencoderKL.from_config
        decoder = make(model_settings(file)).eval()
        with LiveBytes(decoder.parameters()) as live:
            decoder.decode(torch.empty(rows, *shape))
    return int(live.peak)


def _backward(network: Any, rows: int) -> None:
    loss = predict(network, *_inputs(network, rows)).square().mean()
    torch.autograd.backward(loss)


def _forward(network: Any, rows: int) -> int:
    with torch.no_grad(), LiveBytes(network.parameters()) as live:
        predict(network, *_inputs(network, rows))
    return int(live.peak)


def _inputs(network: Any, rows: int) -> tuple[Tensor, Tensor, Conditions]:
    noisy, times = torch.empty(rows, *input_shape(network)), torch.empty(rows)
    settings = plain_network(network).config
    match condition_kind(network):
        case "none":
            return noisy, times, ()
        case "class":
            return noisy, times, (torch.zeros(rows, dtype=torch.int64),)
    if "cross_attention_dim" in settings:
        return noisy, times, (torch.empty(rows, _STATES, settings["cross_attention_dim"]),)
    states = torch.empty(rows, _STATES + _T5_STATES, settings["joint_attention_dim"])
    return noisy, times, (states, torch.empty(rows, settings["pooled_projection_dim"]))
