"""A CLIP-type model as a reward: the similarity of an image and its prompt.

CLIPScore (arXiv:2104.08718) without its factor and its cut at 0; PickScore (arXiv:2305.01569) is the logit.
"""

from collections.abc import Sequence

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from pipeline.config import ClipScorer
from pipeline.errors import UserError
from pipeline.models.foreign import load_tokenizer
from pipeline.types import Group, Response
from reward_models.images.batches import full_batches, image_model, image_processor
from reward_models.images.pixels import Album, prompt_text


class ClipReward:
    """Score images by their similarity to a text."""

    def __init__(self, settings: ClipScorer, album: Album, field: str = "scorer") -> None:
        """Load the model. Raises ``UserError`` for one that cannot be loaded, or compares nothing."""
        self._settings = settings
        self._album = album
        self._processor = image_processor(settings.path, field)
        self._tokenizer = load_tokenizer(settings.path, f"{field}.path: ")
        self._model = image_model(AutoModel.from_pretrained, settings.path, settings.dtype, field)
        if not hasattr(self._model, "logit_scale"):
            kind = type(self._model).__name__
            raise UserError(f"{field}.path: {settings.path}: a {kind} does not compare images with texts, as CLIP does")
        self._longest: int = self._model.config.text_config.max_position_embeddings
        self._truncated = 0

    @property
    def facts(self) -> dict[str, JsonValue]:
        """The number of texts so far that were longer than the model reads, and lost their end."""
        return {"truncated_prompts": self._truncated}

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return one number per image."""
        texts = {text: self._text(text) for text in dict.fromkeys(self._asked(group) for group in groups)}
        wanted = [(response, texts[self._asked(group)]) for group in groups for response in group.responses]
        scale = float(self._model.logit_scale.exp()) if self._settings.value == "logits" else 1.0
        found: list[float] = []
        for batch, count in full_batches(wanted, self._settings.batch_size):
            images = self._images([response for response, _ in batch])
            likeness = (images * torch.stack([text for _, text in batch])).sum(-1) * scale
            found += likeness[:count].tolist()
        scores = iter(found)
        return [tuple(next(scores) for _ in group.responses) for group in groups]

    def _asked(self, group: Group) -> str:
        text = self._settings.text
        return prompt_text(group.prompt) if text is None else text.replace("{prompt}", prompt_text(group.prompt))

    def _text(self, text: str) -> Tensor:
        """Return the unit vector of one text, [d]: alone and padded to one length, so it depends on no other."""
        longest = self._longest
        self._truncated += len(self._tokenizer(text, verbose=False)["input_ids"]) > longest
        given = self._tokenizer(
            [text], padding="max_length", max_length=longest, truncation=True, return_tensors="pt", verbose=False
        )
        vectors = self._model.get_text_features(**given.to(self._model.device))
        return normalize(_vectors(vectors), dim=-1)[0]

    def _images(self, responses: Sequence[Response]) -> Tensor:
        pixels = [self._album.pixels(response) for response in responses]
        given = self._processor(pixels, return_tensors="pt", input_data_format="channels_last")
        values = given["pixel_values"].to(self._model.device, self._model.dtype)
        return normalize(_vectors(self._model.get_image_features(pixel_values=values)), dim=-1)


def _vectors(found: object) -> Tensor:
    """Return the projected vectors, [n, d], which newer versions of transformers wrap."""
    vectors = found if isinstance(found, Tensor) else vars(found)["pooler_output"]
    assert isinstance(vectors, Tensor)
    return vectors.float()
