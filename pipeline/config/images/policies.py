"""Policies that make images: a diffusers model folder, or a small network from scratch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Closed


class DiffusionPolicy(Closed):
    """A diffusion or flow-matching model in diffusers' layout: network, scheduler, and encoders if it has any."""

    kind: Literal["diffusion"] = "diffusion"
    path: str = Field(min_length=1, description="model folder")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the weights of frozen parts and of references; full training steps float32"
    )


class ScratchDiffusion(Closed):
    """A small class-conditional UNet on pixels, made here and trained by the warm start on the prompt data's images."""

    kind: Literal["scratch_diffusion"] = "scratch_diffusion"
    channels: tuple[Annotated[int, Field(ge=8, le=512)], ...] = Field(
        (32, 48), min_length=1, max_length=5, description="of each level, a multiple of 8; the next is half as large"
    )
    layers: int = Field(1, ge=1, le=4, description="a level")
    predicts: Literal["epsilon", "v_prediction", "sample", "flow"] = "epsilon"
    schedule: Literal["cosine", "linear"] = Field("cosine", description="of the noise; not read with predicts: flow")
    timesteps: int = Field(1000, ge=10, le=10000)

    @model_validator(mode="after")
    def _groups_divide(self) -> "ScratchDiffusion":
        odd = [width for width in self.channels if width % 8]
        if odd:
            raise ValueError(f"channels: {odd[0]} is not a multiple of 8, the groups of its norms")
        return self
