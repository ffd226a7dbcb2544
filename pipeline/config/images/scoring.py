"""How images are scored while the policy is trained: what takes the place of token log-probabilities."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Closed


class ImageScore(Closed):
    """The log-ratio of an image, from errors of the denoising network at drawn noise levels (arXiv:2311.12908).

    h = −W · d · mean over K draws of (m − m_ref): half the drop in log-SNR times dimensions times mean squared errors.
    """

    scale: Literal["nats", "mean_error"] = Field(
        "nats",
        description="nats: beta is that of DPO on log-probabilities; mean_error: of published settings for Diffusion-"
        "DPO, such as 5000, which multiply the mean squared errors (half of it, as in the authors' code)",
    )
    draws: int = Field(1, ge=1, le=1024, description="K: draws of noise level and noise an image and epoch")
    reference_errors: Literal["stored", "live"] = Field(
        "stored", description="the reference's errors: computed once before training, or with each step"
    )
    timesteps: Literal["uniform", "logit_normal"] = Field("uniform", description="how noise levels are drawn")
    empty_prompts: float = Field(
        0.0, ge=0, le=1, description="share of the draws without their prompt, for guidance; 0.2 in published recipes"
    )
