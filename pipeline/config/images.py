"""Settings of image policies: how their scores are made. Torch-free."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Closed


class ImageScore(Closed):
    """What a diffusion model's denoising errors are turned into, for the loss."""

    score_scale: Literal["nats", "mean_error"] = Field(
        "nats",
        description="unit of the score. nats: a bound on the log-probability, so beta is that of DPO on text; "
        "mean_error: half the mean squared error, so published beta (2000 to 5000) can be typed as they are",
    )
    draws: int = Field(1, ge=1, le=1024, description="levels of noise that an image is scored at, each epoch anew")
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="how levels of noise are drawn; logit_normal: mostly from the middle"
    )
    weighting: Literal["flat", "bound"] = Field(
        "flat",
        description="weight of each level; bound: that of the bound on the log-probability",
    )
    empty_prompts: float = Field(0.0, ge=0, lt=1, description="share of draws that are scored without their prompt")
    reference: Literal["stored", "live"] = Field(
        "stored", description="errors of the reference: computed once before training, or again before each step"
    )
