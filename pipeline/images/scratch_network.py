"""A small diffusion model on pixels from scratch, as an ordinary policy's folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from pipeline.config import ScratchDiffusion
from pipeline.images.image_folder import write_image_policy

_GROUPS = 8


def make_image_policy(settings: ScratchDiffusion, size: int, classes: int, seed: int, folder: Path) -> None:
    """Write a class-conditional UNet with random weights and its scheduler to ``folder``.

    Args:
        settings: of the network and the noise.
        size: height and width of its images, which have three channels.
        classes: that can be asked for; one more stands for none, so that guidance is possible. 0: unconditional.
        seed: of the weights; the caller's random state is untouched.
        folder: created if missing.
    """
    levels = len(settings.channels)
    # diffusers' constructors have no types.
    make: Any = UNet2DModel
    diffusion: Any = DDIMScheduler
    flow: Any = FlowMatchEulerDiscreteScheduler
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            layers_per_block=settings.layers,
            block_out_channels=settings.channels,
            norm_num_groups=_GROUPS,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            num_class_embeds=classes + 1 if classes else None,
            add_attention=False,
        )
    if settings.predicts == "flow":
        scheduler = flow(num_train_timesteps=settings.timesteps)
    else:
        scheduler = diffusion(
            num_train_timesteps=settings.timesteps,
            beta_schedule="squaredcos_cap_v2" if settings.schedule == "cosine" else "linear",
            prediction_type=settings.predicts,
            clip_sample=True,
        )
    write_image_policy(network, scheduler, folder, classes or None)
