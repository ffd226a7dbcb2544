"""A Hugging Face image classifier as a reward: pixels in, one class's logit or (log-)probability out."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from pipeline.config import ImageClassifierScorer
from pipeline.errors import UserError
from pipeline.types import Group, Prompt
from reward_models.images.batches import full_batches, image_model, image_processor
from reward_models.images.pixels import Album


class ImageClassifierReward:
    """Score images by one class of a classifier."""

    def __init__(self, settings: ImageClassifierScorer, album: Album, field: str = "scorer") -> None:
        """Load the model. Raises ``UserError`` for one that cannot be loaded, or lacks the class."""
        self._settings = settings
        self._album = album
        self._field = field
        self._processor = image_processor(settings.path, field)
        self._model = image_model(AutoModelForImageClassification.from_pretrained, settings.path, settings.dtype, field)
        self._names: dict[int, str] = {int(key): str(name) for key, name in self._model.config.id2label.items()}
        # With one output, that is the reward, as reward models have it.
        alone = 0 if len(self._names) == 1 else None
        self._class = alone if settings.label is None else self._number(settings.label, f"{field}.label")
        if len(self._names) == 1 and settings.value != "logit":
            raise UserError(f"{field}.value: {settings.value}, but {settings.path} has one output; allowed: logit")

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """Return one number per image. Raises ``UserError`` for a prompt whose answer names no class."""
        asked = [(response, self._asked(group.prompt)) for group in groups for response in group.responses]
        found: list[float] = []
        for batch, count in full_batches(asked, self._settings.batch_size):
            images = [self._album.pixels(response) for response, _ in batch]
            given = self._processor(images, return_tensors="pt", input_data_format="channels_last")
            pixels = given["pixel_values"].to(self._model.device, self._model.dtype)
            values = self._values(self._model(pixel_values=pixels).logits.float())
            found += [float(values[place, number]) for place, (_, number) in enumerate(batch[:count])]
        given_scores = iter(found)
        return [tuple(next(given_scores) for _ in group.responses) for group in groups]

    def _values(self, logits: Tensor) -> Tensor:
        match self._settings.value:
            case "logit":
                return logits
            case "probability":
                return logits.softmax(-1)
            case "log_probability":
                return logits.log_softmax(-1)

    def _asked(self, prompt: Prompt) -> int:
        """Return the number of the class that counts for ``prompt``."""
        if self._class is not None:
            return self._class
        if prompt.answer is None:
            raise UserError(
                f"{self._field}.label: is not set, and the prompt {prompt.messages[-1].content[:80]!r} has no answer "
                "that names a class"
            )
        return self._number(prompt.answer, f"{self._field}: the answer of {prompt.messages[-1].content[:80]!r}")

    def _number(self, label: int | str, where: str) -> int:
        text = str(label).strip()
        for number, name in self._names.items():
            if name == text:
                return number
        if text.isdecimal() and int(text) in self._names:
            return int(text)
        shown = ", ".join(f"{number}: {name}" for number, name in [*self._names.items()][:10])
        raise UserError(f"{where}: {text[:80]!r} is no class of {self._settings.path} ({shown[:300]})")
