"""How images are scored while the policy is trained: what takes the place of token log-probabilities. Torch-free."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Closed


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
    weighting: Literal["flat", "bound"] = Field(
        "flat", description="weight of each level; bound: that of the bound on the log-probability, which varies more"
    )
    empty_prompts: float = Field(
        0.0, ge=0, lt=1, description="share of the draws without their prompt, for guidance; 0.2 in published recipes"
    )
    reference_errors: Literal["stored", "live"] = Field(
        "stored", description="the reference's errors: computed once before training, or again with each step"
    )
