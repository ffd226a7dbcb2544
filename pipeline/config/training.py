"""Losses and training runs."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import OPERATIONAL, Closed

# configs/ lies beside pipeline/ both in a checkout and in an installed package.
PRESETS = Path(__file__).parents[2] / "configs" / "loss"


class LossSettings(Closed):
    """A loss preset by name, with its settings; the presets are in configs/loss/."""

    preset: str = "dpo"
    beta: float | None = Field(None, gt=0, description="scale of the log-ratio margin; default: the preset's")
    nll: float | None = Field(
        None, ge=0, description="weight of the chosen response's negative log-likelihood per token"
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        if value not in names:
            raise ValueError(f"no such loss; one of {', '.join(names)}")
        return value


class Lora(Closed):
    """Low-rank adapters (peft); the adapter is merged into the policy that is saved."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Optimisation(Closed):
    """One training run: a round, or the warm start."""

    epochs: float = Field(1.0, gt=0, description="passes over the pairs (or texts)")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(32, ge=1, description="pairs (or texts) an optimiser step, over all processes")
    micro_batch_size: int = Field(
        32,
        ge=1,
        description="pairs (or texts) a forward pass; gradients accumulate to batch_size",
        json_schema_extra=OPERATIONAL,
    )
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward and backward pass; weights and loss stay float32"
    )
    gradient_checkpointing: bool = Field(False, json_schema_extra=OPERATIONAL)
    checkpoint_every: int = Field(
        0, ge=0, description="optimiser steps between mid-round checkpoints; 0: none", json_schema_extra=OPERATIONAL
    )
    stall_timeout: float = Field(1800, gt=0, description="seconds one step may take", json_schema_extra=OPERATIONAL)


class Training(Optimisation):
    """Preference training of a round."""

    lora: Lora | None = None
    optimiser_state: Literal["fresh", "carried"] = Field("fresh", description="AdamW state at the start of a round")
    reference: Literal["fixed", "previous", "ema", "every_n"] = Field(
        "previous",
        description="fixed: the start policy; previous: this round's starting policy; ema: a running average of "
        "policies; every_n: renewed every n-th round",
    )
    reference_every: int = Field(2, ge=1, description="n of every_n")
    reference_decay: float = Field(
        0.5, ge=0, lt=1, description="ema: weight of the old average at the end of each round"
    )

    @model_validator(mode="after")
    def _state_fits_the_parameters(self) -> "Training":
        if self.lora is not None and self.optimiser_state == "carried":
            raise ValueError("optimiser_state: with lora each round trains a new adapter, so its state is fresh")
        return self


class WarmStart(Optimisation):
    """Supervised training before round 1, on the prompt data's reference responses.

    The same trainer, with the likelihood term alone.
    """

    batch_size: int = Field(64, ge=1, description="texts an optimiser step")
    micro_batch_size: int = Field(64, ge=1, description="texts a forward pass", json_schema_extra=OPERATIONAL)
    learning_rate: float = Field(2e-3, gt=0)
