"""What a launch and the forms of AdamW need of this machine. Torch-free."""

import importlib.util

from pipeline.config import Optimisation, RunConfig
from pipeline.config.images.scoring import SafeLoser
from pipeline.errors import UserError
from pipeline.training.distributed.launch import Launch


def require_launcher(config: RunConfig, launch: Launch | None) -> None:
    """Raise ``UserError`` for a ``launch`` (from ``config.accelerate``) without its package, or not for images."""
    if launch is not None and launch.zero is not None and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"{config.accelerate}: distributed_type: DEEPSPEED needs deepspeed (pip install 'prefloop[deepspeed]')"
        )
    if config.modality == "image" and launch is not None:
        _require_whole_images(config, launch)


def _require_whole_images(config: RunConfig, launch: Launch) -> None:
    if launch.kind != "DDP":
        raise UserError(
            f"{config.accelerate}: distributed_type: {launch.kind} shards a policy, but policies of images are trained "
            "whole in each process; allowed: MULTI_GPU, MULTI_CPU"
        )
    if launch.processes > 1 and isinstance(config.training.score.loser, SafeLoser):
        raise UserError(
            f"training.score.loser.kind: safe, but {config.accelerate} has {launch.processes} processes, each of which "
            "knows its own gradient alone; allowed: weight, or one process"
        )


def require_optimiser(settings: Optimisation, section: str, *, on_accelerator: bool) -> None:
    """Raise ``UserError`` if ``settings.optimiser`` of ``section`` cannot work."""
    kind = settings.optimiser
    if kind in ("adamw_offload", "adamw_paged", "adamw_8bit_paged") and not on_accelerator:
        raise UserError(
            f"{section}.optimiser: {kind} keeps state out of an accelerator's memory, but training is on the CPU; "
            "use adamw or adamw_8bit"
        )
    if kind in ("adamw", "adamw_offload"):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{section}.optimiser: {kind} needs bitsandbytes (pip install 'prefloop[low-bit]')")
