"""Labellers that read images alone. Functions, judges and ensembles have the settings of text."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import OPERATIONAL, Closed

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]


class DotsScorer(Closed):
    """Reward of the image task ``dots``: 1 for the colour, 1 for the half, and ``clean`` for a clean dot.

    A picture without a dot of that colour or in that half gets nothing for it.
    """

    kind: Literal["dots"] = "dots"
    clean: float = Field(0.5, ge=0)


class PeopleScorer(Closed):
    """People who compare two images of a prompt on the page of questions; the run pauses until all are answered.

    They label what rounds train on; held-out images get no score.
    """

    kind: Literal["people"] = "people"
    pairs_per_prompt: int = Field(1, ge=1, description="comparisons of each prompt's images")
    wait: float | None = Field(
        0,
        ge=0,
        description="seconds to wait for answers before the run pauses; null: for ever",
        json_schema_extra=OPERATIONAL,
    )
    poll: float = Field(5, gt=0, description="seconds between two looks at the answers", json_schema_extra=OPERATIONAL)


class ImageClassifierScorer(Closed):
    """A Hugging Face image classifier: what it gives one of its classes is the reward."""

    kind: Literal["image_classifier"] = "image_classifier"
    path: str = Field(min_length=1)
    label: int | str | None = Field(
        None,
        description="the class whose value is the reward, by name or number; default: the one that each prompt's "
        "answer names, or of a model with one output that",
    )
    value: Literal["log_probability", "probability", "logit"] = "log_probability"
    batch_size: int = Field(16, ge=1, le=4096, description="images of a forward pass", json_schema_extra=OPERATIONAL)
    dtype: ModelDtype = Field("auto", description="of its weights and products; auto: that of the model's files")


class ClipScorer(Closed):
    """A CLIP-type model: the similarity of image and prompt is the reward, as in PickScore and HPS v2.

    ``logits``: cosine times the model's own scale (PickScore); ``cosine``: from -1 to 1 (CLIPScore, HPS v2).
    """

    kind: Literal["clip"] = "clip"
    path: str = Field(min_length=1)
    value: Literal["logits", "cosine"] = "logits"
    text: str | None = Field(
        None, min_length=1, description="this text instead of the prompt, or with {prompt} in it: a photo of {prompt}"
    )
    batch_size: int = Field(16, ge=1, le=4096, description="images of a forward pass", json_schema_extra=OPERATIONAL)
    dtype: ModelDtype = Field("auto", description="of its weights and products; auto: that of the model's files")
