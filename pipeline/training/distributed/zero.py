"""ZeRO-1 and 2 (arXiv:1910.02054) by DeepSpeed's engine: the optimiser's state, with 2 gradients too, is cut.

Parameters stay whole in every process. DeepSpeed is an optional dependency, imported where an engine is made.
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

from pipeline.models.classifier_scores import RowScores
from pipeline.models.token_logps import TokenFacts, TokenLogps
from pipeline.training.distributed.launch import Zero
from pipeline.training.distributed.offloaded_adamw import MOMENTS, STEP

# Numbers that are averaged over processes at a time; DeepSpeed's own 500 million would take 2 GB.
BUCKET = 50_000_000


class ZeroEngine(nn.Module):
    """A policy and the AdamW of its parameters, as DeepSpeed runs them.

    Its gradient is that of the loss as given, averaged over processes; no other scale.
    """

    def __init__(
        self,
        policy: TokenLogps | RowScores,
        adamw: torch.optim.Optimizer,
        settings: Zero,
        max_grad_norm: float,
        accelerator: Accelerator,
    ) -> None:
        """Every process must make one; ``adamw`` is worth nothing by itself afterwards."""
        super().__init__()
        on_cpu = accelerator.device.type == "cpu"
        # DeepSpeed reads both as it is imported or first asked.
        os.environ.update(DS_ACCELERATOR="cpu" if on_cpu else "cuda", LOCAL_SIZE=str(accelerator.num_processes))
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.init_distributed("gloo" if on_cpu else "nccl", auto_mpi_discovery=False)
        config = {
            # It is asked for, and changes nothing here: micro-batches are cut and divided by the loss.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": max_grad_norm,
            "zero_optimization": {
                "stage": settings.stage,
                "reduce_bucket_size": BUCKET,
                "offload_optimizer": {"device": settings.offload},
            },
            # Ours is fused AdamW there too, so that its state is the same tensors anywhere.
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
        """What the policy says of ``rows``."""
        return TokenFacts(**self._engine(*rows))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, gradients add up for a later backward pass; ZeRO-2 averages them all the same."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradient_norm(self) -> float:
        """Of the whole gradient before it is clipped; NaN if it is not finite. Every process must ask."""
        norm = float(self._zero.scaled_global_norm())
        return norm if norm >= 0 else math.nan

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Settings of the optimiser, by group."""
        groups: list[dict[str, Any]] = self._zero.param_groups
        return groups

    def step(self) -> None:
        """Clip the gradient, then one step of AdamW."""
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient."""
        self._zero.zero_grad(set_to_none=set_to_none)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state, whole; empty before the first step. Every process must ask."""
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        steps = self._zero.optimizer.state[self._flat[id(parameter)]][STEP]
        return {STEP: steps.clone(), **{name: whole(parameter, name) for name in MOMENTS}} if steps > 0 else {}

    def load_state(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Make ``state``, whole, that of ``parameter``; each process keeps its part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.optimizer.state[self._flat[id(parameter)]][STEP].copy_(state[STEP])
        for name in MOMENTS:
            safe_set_full_optimizer_state(parameter, state[name], name)

    def _start_state(self) -> None:
        """Give AdamW the state that it would make itself in its first step.

        DeepSpeed ties parameters to it once, after the first step of the first group, when other groups have none.
        """
        for flat in self._zero.single_partition_of_fp32_groups:
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._zero.optimizer.state[flat] = {STEP: torch.zeros((), device=flat.device), **moments}
        self._zero._lazy_init_hp_params_optimizer_state()

    def take_up_weights(self) -> None:
        """Step from the parameters as they are, changed from outside."""
        self._zero.refresh_fp32_params()

    def release(self) -> None:
        """Leave the parameters as if there had been no engine, each in memory of its own."""
        for group in self._zero.bit16_groups:
            for parameter in group:
                parameter.data = parameter.data.clone()
        self._engine.destroy()


class _Outputs(nn.Module):
    """A policy whose answer is a dict: DeepSpeed looks for tensors in containers, not in dataclasses."""

    def __init__(self, policy: TokenLogps | RowScores) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *rows: Any) -> dict[str, Any]:
        """What the policy says of ``rows``."""
        facts = self.policy(*rows)
        return {field.name: getattr(facts, field.name) for field in fields(facts)}
