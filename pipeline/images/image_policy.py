"""Diffusion models as policies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.images.networks import ConditionKind, Conditions, plain_network
from pipeline.images.noise_schedule import NoiseSchedule
from pipeline.images.text_encoder import TextEncoder


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """A diffusion model, its schedule and what turns prompts into conditions and latents into images.

    Attributes:
        network: a diffusers model, perhaps in an adapter's wrapper.
        scheduler: a diffusers scheduler as the folder's config has it.
        schedule: the levels of noise that ``scheduler`` trains.
        condition: what the network is told besides the noisy input.
        shape: channels, height and width of latents.
        vae: None: latents are the pixels.
        encoder: of text.
        classes: number of classes that can be asked for; 0 without classes.
        null_class: the class that stands for none; None: the model has none.
        path: the folder of the model, for an adapter of the model under it.
    """

    network: Any
    scheduler: Any
    schedule: NoiseSchedule
    condition: ConditionKind
    shape: tuple[int, int, int]
    vae: Any | None
    encoder: TextEncoder | None
    classes: int
    null_class: int | None
    path: str

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        found: torch.device = plain_network(self.network).device
        return found

    def with_network(self, network: Any) -> "ImagePolicy":
        """Return the same policy with another network."""
        return replace(self, network=network)

    def without_encoders(self) -> "ImagePolicy":
        """Return the same policy without what encodes images and prompts, so that its memory can be freed."""
        return replace(self, vae=None, encoder=None)

    def encode(self, prompts: Sequence[str | int | None]) -> Conditions:
        """Return the conditions [P, ...] of P prompts: texts, classes, or None where nothing is told.

        None stands for the empty text, or for ``null_class``.

        Raises:
            UserError: a prompt of another kind than ``condition``, an unknown class, or no null class.
        """
        if self.condition == "none":
            if any(prompt not in (None, "") for prompt in prompts):
                raise UserError("prompt: this policy is unconditional; allowed: no prompt")
            return ()
        if self.encoder is not None:
            texts = ["" if prompt is None else prompt for prompt in prompts]
            if not all(isinstance(text, str) for text in texts):
                raise UserError("prompt: this policy reads texts; allowed: a text")
            return self.encoder.encode([str(text) for text in texts])
        return (torch.tensor([self._class(prompt) for prompt in prompts], dtype=torch.int64),)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Return the images [B, C, H, W], in [-1, 1], of ``latents`` [B, ...]."""
        if self.vae is None:
            return latents.clamp(-1, 1)
        scaled = latents / self.vae.config["scaling_factor"] + (self.vae.config.get("shift_factor") or 0.0)
        decoded: Tensor = self.vae.decode(scaled.to(self.vae.dtype)).sample
        return decoded.float().clamp(-1, 1)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents [B, ...] of images [B, C, H, W] in [-1, 1]: the mode of the encoder's distribution."""
        if self.vae is None:
            return pixels
        # A third faster on a CPU; it rounds otherwise.
        laid = torch.channels_last
        shown = pixels.to(self.vae.dtype).contiguous(memory_format=laid)
        mode: Tensor = self.vae.to(memory_format=laid).encode(shown).latent_dist.mode().float().contiguous()
        scaled: Tensor = (mode - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config["scaling_factor"]
        return scaled

    def _class(self, prompt: str | int | None) -> int:
        if prompt is None:
            if self.null_class is None:
                raise UserError(f"{self.path}: model_index.json: null_class: missing; guidance needs a class for none")
            return self.null_class
        try:
            number = int(prompt)
        except ValueError:
            number = -1
        if not 0 <= number < self.classes:
            raise UserError(f"prompt: {prompt!r}; allowed: a class from 0 to {self.classes - 1}")
        return number
