"""Text encoders of diffusion models: a prompt becomes the states that the network attends to.

Prompts are encoded one at a time, so that a prompt's states depend on no other prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from pipeline.errors import UserError
from pipeline.images.networks import Conditions
from pipeline.models.foreign import refused

# Tokens of T5 in Stable Diffusion 3.
_T5_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Tokenizers and their encoders, in the order of the model's folder.

    Attributes:
        parts: (tokenizer, encoder) of each; the last of three is T5.
        pooled: whether the network also reads one pooled state of each prompt (Stable Diffusion 3).
        width: of the joint states, if they are pooled.
    """

    parts: tuple[tuple[Any, Any], ...]
    pooled: bool = False
    width: int = 0

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Return the states [P, L, D] of P prompts, and [P, E] pooled ones if the network reads them."""
        rows = [
            self._joint(prompt) if self.pooled else (self._states(*self.parts[0], prompt)[0],) for prompt in prompts
        ]
        return tuple(torch.cat(parts).float() for parts in zip(*rows, strict=True))

    def ids(self, prompt: str) -> tuple[int, ...]:
        """Return the ids of ``prompt`` in the first encoder, without padding."""
        tokenizer = self.parts[0][0]
        return tuple(tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids)

    def to(self, device: torch.device) -> None:
        """Move the encoders."""
        for _, encoder in self.parts:
            torch.nn.Module.to(encoder, device)

    def _states(self, tokenizer: Any, encoder: Any, prompt: str) -> tuple[Tensor, Any]:
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        read = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = "use_attention_mask" in vars(encoder.config) and encoder.config.use_attention_mask
        mask = read.attention_mask.to(encoder.device) if masked else None
        found = encoder(read.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=self.pooled)
        return found[0], found

    def _alone(self, prompt: str) -> Conditions:
        return (self._states(*self.parts[0], prompt)[0],)

    def _joint(self, prompt: str) -> Conditions:
        """States of both CLIP encoders side by side, then T5's after them; zeros stand for a T5 that is left out."""
        found = [self._states(tokenizer, encoder, prompt)[1] for tokenizer, encoder in self.parts[:2]]
        states = torch.cat([one.hidden_states[-2] for one in found], -1)
        states = torch.nn.functional.pad(states, (0, self.width - states.shape[-1]))
        if len(self.parts) > 2:
            tokenizer, encoder = self.parts[2]
            read = tokenizer(
                [prompt], padding="max_length", max_length=_T5_TOKENS, truncation=True, return_tensors="pt"
            )
            further = encoder(read.input_ids.to(encoder.device))[0]
        else:
            further = states.new_zeros(1, _T5_TOKENS, self.width)
        return torch.cat([states, further], 1), torch.cat([one.text_embeds for one in found], -1)


def load_text_encoder(folder: Path, dtype: torch.dtype, *, width: int | None) -> TextEncoder:
    """Load tokenizers and encoders of a policy's folder.

    Args:
        folder: with ``tokenizer`` and ``text_encoder``, and their numbered companions.
        dtype: of the weights.
        width: of the network's joint states; None: it reads one encoder's states alone.

    Raises:
        UserError: one that is missing or cannot be read.
    """
    places = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"), ("tokenizer_3", "text_encoder_3")]
    needed = 1 if width is None else 2
    parts = []
    for number, (words, states) in enumerate(places[: 1 if width is None else 3]):
        if not (folder / states).is_dir():
            if number < needed:
                raise UserError(f"{folder}: no folder {states}, whose states the network reads")
            continue
        kinds = CLIPTextModel if width is None else (CLIPTextModelWithProjection, T5EncoderModel)[number // 2]
        with refused(f"{folder / states}: cannot load this text encoder"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder / words), trust_remote_code=False)
            encoder: Any = kinds.from_pretrained(
                str(folder / states), dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        parts.append((tokenizer, encoder.eval().requires_grad_(False)))
    return TextEncoder(tuple(parts), pooled=width is not None, width=width or 0)
