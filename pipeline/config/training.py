"""Settings of training runs."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.images.scoring import ImageScore
from pipeline.config.policy import Lora

OptimiserKind = Literal["adamw", "adamw_8bit", "adamw_paged", "adamw_8bit_paged", "adamw_offload"]


class Optimisation(Closed):
    """One training run: a round, or the warm start."""

    epochs: float = Field(1.0, gt=0, description="passes over the pairs (or texts)")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(32, ge=1, description="pairs (or texts) an optimiser step, over all processes")
    micro_batch_size: int = Field(
        32,
        ge=1,
        description="pairs (or texts) a forward pass at most; gradients accumulate to batch_size",
        json_schema_extra=OPERATIONAL,
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens of a forward pass, unless one pair alone has more; default: 1,024 on "
        "CPU, where more is not faster, else 16,384",
        json_schema_extra=OPERATIONAL,
    )
    packing: bool = Field(
        True,
        description="compute each prompt once for all its responses, without padding, if the model's attention can",
        json_schema_extra=OPERATIONAL,
    )
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    optimiser: OptimiserKind = Field(
        "adamw",
        description="adamw: fused, 8 bytes of state a weight; adamw_8bit: 2 bytes, in blocks of 256 (bitsandbytes); on "
        "CUDA also adamw_paged and adamw_8bit_paged: their state moves to CPU memory where the accelerator's runs out; "
        "adamw_offload: adamw whose state stays in CPU memory and visits the accelerator for each parameter's step",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward and backward pass; weights and loss stay float32"
    )
    gradient_sync: Literal["auto", "step", "pass"] = Field("auto", json_schema_extra=OPERATIONAL)
    gradient_checkpointing: bool = Field(False, json_schema_extra=OPERATIONAL)
    checkpoint_every: int = Field(
        0, ge=0, description="optimiser steps between mid-round checkpoints; 0: none", json_schema_extra=OPERATIONAL
    )
    stall_timeout: float = Field(1800, gt=0, description="seconds one step may take", json_schema_extra=OPERATIONAL)


class Contrast(Closed):
    """Two models whose difference sets the weight of each token (TIS-DPO, arXiv:2410.04350): folders or hub names."""

    positive: str = Field(min_length=1, description="trained or prompted to answer well")
    negative: str = Field(min_length=1, description="trained or prompted to answer badly")


# Run folders of 0.1.0, which trained no router loss, go on without one; no part of keys, which were made without it.
UNBALANCED = "earlier"
RouterCoefficient = Annotated[float, Field(ge=0)] | Literal["config", "earlier"]
_ROUTERS = (
    "coefficient of the loss that balances the experts of a mixture (Switch Transformer). config: router_aux_loss_coef "
    "of the model's config, none if that has none; 0: none; earlier: none, for run folders of 0.1.0"
)


def router_coefficient(given: RouterCoefficient) -> float | None:
    """Return the coefficient as a number; None: that of the model's config."""
    return 0.0 if given == UNBALANCED else None if given == "config" else float(given)


def _without_unbalanced(plain: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in plain.items() if (name, value) != ("router_aux_loss_coef", UNBALANCED)}


AlarmName = Literal[
    "loss", "diverged", "gradient", "margin", "chosen", "ending", "experts", "winner_error", "both_errors", "held_out",
    "entropy",
]  # fmt: skip


class Alarms(Closed):
    """Rules that watch a training run from its step log and its evaluations on held-out pairs.

    A rule compares the newest steps with the run's own beginning, so that its limit means the same for every loss;
    null turns it off. A raised alarm is told and kept, and the gate does not promote a round that ends with one.
    """

    loss: float | None = Field(
        0.5,
        gt=0,
        description="how far the loss may stay above its beginning: a share of that (of 0.5 if it is nearer to 0)",
    )
    diverged: float | None = Field(9.0, gt=0, description="the same, for a loss that will not come back")
    gradient: float | None = Field(10.0, gt=1, description="factor by which the gradient norm may grow")
    margin: float | None = Field(
        10.0, gt=0, description="how far chosen and rejected responses may move apart, nats a token"
    )
    chosen: float | None = Field(1.0, gt=0, description="fall of chosen responses' log-prob, nats a token")
    ending: float | None = Field(
        2.0, gt=0, description="fall of the log-prob of chosen responses' end token, nats: responses grow longer"
    )
    experts: float | None = Field(
        2.0,
        gt=1,
        description="mixture of experts: factor by which the load of a layer's busiest expert, over the mean, may grow",
        json_schema_extra=LATER,
    )
    winner_error: float | None = Field(
        1.7,
        gt=1,
        description="images: factor by which the error on chosen images may exceed the reference's",
        json_schema_extra=LATER,
    )
    both_errors: float | None = Field(
        1.6,
        gt=1,
        description="images: factor by which the errors on both sides may exceed the reference's while the loss falls",
        json_schema_extra=LATER,
    )
    held_out: float | None = Field(
        3.0,
        gt=0,
        description="fall of the held-out margin from its best while the training margin rises, in standard errors",
    )
    entropy: float | None = Field(
        0.2, gt=0, lt=1, description="share of its entropy on held-out responses that the policy must keep"
    )
    stop: tuple[AlarmName, ...] = Field(
        ("diverged",), description="these end the round's training; the last good weights are kept"
    )
    pause: tuple[AlarmName, ...] = Field((), description="these pause the run, to be continued by the same command")

    @model_validator(mode="after")
    def _one_action_each(self) -> "Alarms":
        both = [name for name in self.stop if name in self.pause]
        if both:
            raise ValueError(f"stop and pause both hold {', '.join(both)}; an alarm does one thing")
        return self


class ReferenceSync(Closed):
    """Within a round: π_ref ← mix · π + (1 − mix) · π_ref, weight by weight (TR-DPO, arXiv:2404.09656)."""

    every: int = Field(64, ge=1, description="optimiser steps between two moves")
    mix: float = Field(0.6, gt=0, le=1, description="share of the policy; 1: the reference becomes the policy")


# Among training.references: the policy of round 0.
START = "start"


class Training(Optimisation):
    """Preference training of a round."""

    lora: Lora | None = None
    context_parallel: int = Field(1, ge=1, description="processes that share each row", json_schema_extra=OPERATIONAL)
    router_aux_loss_coef: RouterCoefficient = Field("config", description=_ROUTERS, json_schema_extra=LATER)
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of full training: what the optimiser steps. bfloat16: 2 bytes a weight instead of 4, rounded at "
        "random so that small steps count on average; gradients are bfloat16 too, and summed in float32",
        json_schema_extra=LATER,
    )
    optimiser_state: Literal["fresh", "carried"] = Field("fresh", description="AdamW state at the start of a round")
    reference: Literal["fixed", "previous", "ema", "every_n"] = Field(
        "previous",
        description="fixed: the start policy; previous: this round's starting policy; ema: a running average of "
        "policies; every_n: replaced every n-th round",
    )
    reference_every: int = Field(2, ge=1, description="n of every_n")
    reference_decay: float = Field(
        0.5, ge=0, lt=1, description="ema: weight of the old average at the end of each round"
    )
    reference_sync: ReferenceSync | None = Field(
        None, description="moves the reference within a round too; null: it stays", json_schema_extra=LATER
    )
    lag: Literal[0, 1] = Field(
        0,
        description="1: a round samples the policy that the round before started from, so that it can be sampled while "
        "that round trains; 0: the policy that it starts from itself",
        json_schema_extra=LATER,
    )
    references: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="model folders, or start for the run's start policy: further references of a mixture or harmonic "
        "prior, in the order of its weights after the first; of an extrapolated one, the checkpoint before the start",
    )
    reference_cache: str | None = Field(
        "../.reference_cache",
        min_length=1,
        description="folder, relative to the run folder, of reference models' outputs for token ids, for all runs that "
        "compute the same: other losses, other seeds; may be deleted at any time; null: none",
        json_schema_extra=OPERATIONAL,
    )
    contrastive: Contrast | None = Field(None, description="for weights: given, from two contrasting models")
    turns: Literal["last", "all_chosen"] = Field(
        "last",
        description="what the loss reads of pairs of conversations. last: the last turn, and all turns before it are "
        "the same; all_chosen: every turn of the assistant in which chosen and rejected differ, each after what the "
        "model would be asked with; other turns, and the results of tools, are read but not trained on",
        json_schema_extra=LATER,
    )
    score: ImageScore = Field(
        ImageScore(), description="modality image: what the loss reads of an image", json_schema_extra=LATER
    )
    alarms: Alarms = Field(Alarms(), json_schema_extra=LATER)
    evaluate_every: int = Field(
        0,
        ge=0,
        description="offline: optimiser steps between evaluations on held-out pairs; one more before the first step, "
        "one after the last; 0: none",
        json_schema_extra=LATER,
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the round's policy: the last weights, or those with the smallest log-loss on held-out pairs",
        json_schema_extra=LATER,
    )
    early_stop: int | None = Field(
        None,
        ge=1,
        description="end the round after this many evaluations without a smaller log-loss on held-out pairs",
        json_schema_extra=LATER,
    )

    @property
    def keeps_evaluated(self) -> bool:
        """Whether the weights of the best evaluation so far are on disk, since the round may end with them."""
        return self.evaluate_every > 0 and (self.keep == "best" or "held_out" in self.alarms.stop)

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result."""
        return _without_unbalanced(super().identity())

    @model_validator(mode="after")
    def _state_fits_the_parameters(self) -> "Training":
        if self.weights == "bfloat16" and self.dtype != "bfloat16":
            raise ValueError("dtype: float32, but weights of bfloat16 hold no more than 16 bits; allowed: bfloat16")
        if self.lora is None:
            return self
        if self.lora.lifetime == "round" and self.optimiser_state == "carried":
            raise ValueError(
                "optimiser_state: carried, but with lora.lifetime round each round trains a new adapter, whose state "
                "is fresh; allowed: fresh, or lora.lifetime run"
            )
        if self.lora.lifetime == "run" and self.reference == "ema":
            raise ValueError(
                "reference: ema, but the mean of two adapters is no adapter of their rank; allowed with lora.lifetime "
                "run: fixed, previous, every_n"
            )
        if self.reference_sync is not None and self.reference_sync.mix < 1:
            raise ValueError(
                f"reference_sync.mix: {self.reference_sync.mix:g}, but the mean of two adapters is no adapter of their "
                "rank; allowed with training.lora: 1"
            )
        if self.weights == "bfloat16":
            raise ValueError("weights: bfloat16, but an adapter's few weights are trained in float32; allowed: float32")
        return self

    @model_validator(mode="after")
    def _evaluations_are_made(self) -> "Training":
        wants = [name for name, on in (("keep: best", self.keep == "best"), ("early_stop", self.early_stop)) if on]
        if wants and not self.evaluate_every:
            raise ValueError(
                f"{wants[0]}: needs evaluations on held-out pairs; set evaluate_every to a number of steps"
            )
        return self


class WarmStart(Optimisation):
    """Supervised training before round 1, on the prompt data's reference responses.

    The same trainer, with the likelihood term alone.
    """

    batch_size: int = Field(64, ge=1, description="texts an optimiser step")
    micro_batch_size: int = Field(64, ge=1, description="texts a forward pass", json_schema_extra=OPERATIONAL)
    learning_rate: float = Field(2e-3, gt=0)
    router_aux_loss_coef: RouterCoefficient = Field("config", description=_ROUTERS, json_schema_extra=LATER)

    def identity(self) -> dict[str, JsonValue]:
        """The settings that decide the result."""
        return _without_unbalanced(super().identity())
