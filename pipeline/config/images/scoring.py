"""How images are scored while the policy is trained: what takes the place of token log-probabilities. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import LATER, Closed


class WeighedLoser(Closed):
    """The rejected image's gradient times a fixed weight."""

    kind: Literal["weight"] = "weight"
    weight: float = Field(0.5, ge=0, le=1)


class SafeLoser(Closed):
    """The rejected image's gradient scaled down where it would raise the chosen one's error (arXiv:2511.03317).

    The scale is min(1, (1 − μ) |g_w|² / (g_l · g_w)) where the product is positive: of the whole step, for its weights.
    It costs a second backward pass.
    """

    kind: Literal["safe"] = "safe"
    mu: float = Field(0.9, ge=0, le=1, description="μ, share of the chosen image's progress that is kept in any case")


class ImageScore(Closed):
    """The log-ratio of an image, from errors of the denoising network at drawn noise levels (arXiv:2311.12908).

    h = −W · d · mean over K draws of (m − m_ref): half the drop in log-SNR times dimensions times mean squared errors.
    """

    score_scale: Literal["nats", "mean_error"] = Field(
        "nats",
        description="nats: beta is that of DPO on log-probabilities; mean_error: h is half the difference of mean "
        "squared errors, so that published values of Diffusion-DPO, such as 5000, are typed in as they are",
    )
    draws: int = Field(1, ge=1, le=1024, description="K: draws of noise level and noise an image and epoch")
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="how noise levels are drawn; logit_normal: mostly from the middle, as for flows"
    )
    levels: tuple[float, float] = Field(
        (0.0, 1.0),
        description="the part of the schedule that noise levels are drawn from, as shares of its levels from the least "
        "noisy; [0.5, 1]: the noisier half, where most of what an image shows is decided, and little of its finish",
        json_schema_extra=LATER,
    )
    weighting: Literal["flat", "bound"] = Field(
        "flat", description="weight of each level; bound: that of the bound on the log-probability, which varies more"
    )
    empty_prompts: float = Field(
        0.0, ge=0, lt=1, description="share of the draws without their prompt, for guidance; 0.2 in published recipes"
    )
    loser: Annotated[WeighedLoser | SafeLoser, Field(discriminator="kind")] | None = Field(
        None, description="how much of a rejected image's gradient is taken; null: all"
    )
    reference_errors: Literal["stored", "live"] = Field(
        "stored", description="the reference's errors: computed once before training, or again with each step"
    )

    def drawn(self) -> "ImageScore":
        """The settings that decide an image's errors under a reference: without those of the loss's gradient."""
        return self.model_copy(update={"loser": None, "reference_errors": "stored"})

    def for_held_out(self, draws: int) -> "ImageScore":
        """The settings that held-out pairs are scored with: in the loss's unit and levels, each with its prompt."""
        return self.drawn().model_copy(update={"draws": draws, "empty_prompts": 0.0})

    @model_validator(mode="after")
    def _part_of_the_schedule(self) -> "ImageScore":
        low, high = self.levels
        if not 0 <= low < high <= 1:
            raise ValueError(f"levels: [{low:g}, {high:g}]; allowed: two shares from 0 to 1, the smaller one first")
        return self
