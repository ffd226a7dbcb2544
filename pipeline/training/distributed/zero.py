"""ZeRO-1 and 2 (arXiv:1910.02054) by DeepSpeed's engine: optimiser state is sharded; with ZeRO-2, gradients too.

Parameters stay whole in every process. DeepSpeed is an optional dependency, imported when an engine is created.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.images.draw_scores import FactsModule
from pipeline.models.token_logps import TokenFacts
from pipeline.training.distributed.launch import Zero
from pipeline.training.distributed.offloaded_adamw import MOMENTS, STEP

# Numbers averaged over processes at a time; DeepSpeed's default of 500 million would take 2 GB.
BUCKET = 50_000_000


class ZeroEngine(nn.Module):
    """A policy and the AdamW of its parameters, as DeepSpeed runs them.

    Its gradient is that of the given loss, averaged over processes, without other scaling.
    """

    def __init__(
        self,
        policy: FactsModule,
        adamw: torch.optim.Optimizer,
        settings: Zero,
        max_grad_norm: float,
        accelerator: Accelerator,
    ) -> None:
        """Create the engine, in every process; afterwards ``adamw`` must not be used by itself."""
        super().__init__()
        on_cpu = accelerator.device.type == "cpu"
        # DeepSpeed reads both at import or first use.
        os.environ.update(DS_ACCELERATOR="cpu" if on_cpu else "cuda", LOCAL_SIZE=str(accelerator.num_processes))
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.init_distributed("gloo" if on_cpu else "nccl", auto_mpi_discovery=False)
        config = {
            # Required, without effect here: micro-batches are already cut, and the loss is already divided.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": max_grad_norm,
            "zero_optimization": {
                "stage": settings.stage,
                "reduce_bucket_size": BUCKET,
                "offload_optimizer": {"device": settings.offload},
            },
            # Use fused AdamW on the CPU too, so that its state has the same tensors everywhere.
            "zero_force_ds_cpu_optimizer": False,
        }
        made: Any = deepspeed.initialize(model=_Outputs(policy), optimizer=adamw, config=config)
        self._engine = made[0]
        self._zero = self._engine.optimizer
        self._flat = {
            id(parameter): flat
            for group, flat in zip(self._zero.bit16_groups, self._zero.single_partition_of_fp32_groups, strict=True)
            for parameter in group
        }
        self._start_state()

    def forward(self, *rows: Any) -> TokenFacts:
        """Return the policy's values for ``rows``."""
        return TokenFacts(**self._engine(*rows))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let gradients add up for a later backward pass; ZeRO-2 averages them anyway."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradient_norm(self) -> float:
        """Return the whole gradient's norm before clipping; NaN if not finite. Every process must call this."""
        norm = float(self._zero.scaled_global_norm())
        return norm if norm >= 0 else math.nan

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser settings, by group."""
        groups: list[dict[str, Any]] = self._zero.param_groups
        return groups

    def step(self) -> None:
        """Clip the gradient, then take one AdamW step."""
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient."""
        self._zero.zero_grad(set_to_none=set_to_none)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's whole state; empty before the first step. Every process must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        steps = self._zero.optimizer.state[self._flat[id(parameter)]][STEP]
        return {STEP: steps.clone(), **{name: whole(parameter, name) for name in MOMENTS}} if steps > 0 else {}

    def load_state(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Load the whole ``state`` of ``parameter``; each process keeps its part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.optimizer.state[self._flat[id(parameter)]][STEP].copy_(state[STEP])
        for name in MOMENTS:
            safe_set_full_optimizer_state(parameter, state[name], name)

    def _start_state(self) -> None:
        """Give AdamW the state that it would create in its first step.

        DeepSpeed links parameters to it once, after the first group's first step, when other groups have no state yet.
        """
        for flat in self._zero.single_partition_of_fp32_groups:
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._zero.optimizer.state[flat] = {STEP: torch.zeros((), device=flat.device), **moments}
        self._zero._lazy_init_hp_params_optimizer_state()

    def take_up_weights(self) -> None:
        """Continue from the parameters as they are after a change from outside."""
        self._zero.refresh_fp32_params()

    def release(self) -> None:
        """Restore the parameters as if there had been no engine, each in its own memory."""
        for group in self._zero.bit16_groups:
            for parameter in group:
                parameter.data = parameter.data.clone()
        self._engine.destroy()


class _Outputs(nn.Module):
    """A policy that returns a dict: DeepSpeed looks for tensors in containers, not in dataclasses."""

    def __init__(self, policy: FactsModule) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *rows: Any) -> dict[str, Any]:
        """Return the policy's values for ``rows``."""
        facts = self.policy(*rows)
        return {field.name: getattr(facts, field.name) for field in fields(facts)}
