"""What a launch and the forms of AdamW need of this machine. Torch-free."""

import importlib.util

from pipeline.config import Optimisation, RunConfig
from pipeline.errors import UserError
from pipeline.training.distributed.launch import Launch


def require_launcher(config: RunConfig, launch: Launch | None) -> None:
    """Raise ``UserError`` if a package that ``launch`` (from ``config.accelerate``) needs is not installed."""
    if launch is not None and launch.zero is not None and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"{config.accelerate}: distributed_type: DEEPSPEED needs deepspeed (pip install 'prefloop[deepspeed]')"
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
