"""What TRL's trainers read, made of batches of log-probabilities, so that its own code computes the loss.

A trainer is made without its constructor, which wants a model, a tokenizer and a dataset; its fields are TRL's own
defaults. In the place of the model stands whatever returns the given log-probabilities.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.losses import PairBatch, Side

# Of every token that is no part of a response.
PROMPT_LOGP = -1.7
Settings = Mapping[str, object]


class GivenModel(nn.Module):
    """A model that says the same whatever it is asked."""

    is_gradient_checkpointing = False

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, *_: object, **__: object) -> SimpleNamespace:
        return self.outputs


def one_process(**more: object) -> SimpleNamespace:
    """An accelerator of a single process."""

    def same(values: Any) -> Any:
        return values

    return SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, **more)


def bare_trainer(kind: type, config: type, **settings: object) -> Any:
    """A trainer with the defaults of its config and ``settings``, which has seen no constructor."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(config)
    }
    trainer: Any = object.__new__(kind)
    vars(trainer).update(
        {name: value for name, value in defaults.items() if not isinstance(getattr(kind, name, None), property)}
        | {
            "args": SimpleNamespace(**(defaults | settings)),
            "accelerator": one_process(),
            "aux_loss_enabled": False,
            "is_encoder_decoder": False,
            "precompute_ref_logps": False,
            "_metrics": {"train": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
        }
        | settings
    )
    return trainer


def stacked(sides: tuple[Side, ...], values: Callable[[Side], Tensor | None], filler: float = 0.0) -> Tensor:
    """[R, T] of all sides' rows one below the other, ``filler`` outside the masks."""
    width = max(side.mask.shape[1] for side in sides)
    rows = []
    for side in sides:
        found = values(side)
        assert found is not None, "the batch has all fields"
        # Where, not times: what stands outside the mask may be NaN.
        kept = torch.where(side.mask, found, torch.full_like(found, filler))
        rows.append(nn.functional.pad(kept, (0, width - kept.shape[1]), value=filler))
    return torch.cat(rows)


def token_outputs(sides: tuple[Side, ...]) -> GivenModel:
    """A policy with TRL's fused head."""
    logps = stacked(sides, lambda side: side.policy)
    nothing = torch.zeros_like(logps)
    return GivenModel(
        log_probs=logps,
        log_sum_sq_probs=stacked(sides, lambda side: side.collision, filler=1.0).log(),
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
    )


def reference_outputs(sides: tuple[Side, ...]) -> GivenModel:
    return GivenModel(log_probs=stacked(sides, lambda side: side.reference))


def token_inputs(sides: tuple[Side, ...]) -> dict[str, Tensor]:
    """Ids that say nothing, after a prompt of one token."""
    mask = stacked(sides, lambda side: side.mask.long()).long()
    mask = nn.functional.pad(mask, (1, 0))
    return {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def logits_of(logps: Tensor) -> Tensor:
    """[R, T + 1, 2] of a vocabulary of two, under which token 0 has the log-probability ``logps`` [R, T] < 0.

    Those of position t predict the token after it; the last ones predict nothing.
    """
    likely = logps.clamp(max=-1e-6)
    return nn.functional.pad(torch.stack([likely, torch.log(-torch.expm1(likely))], dim=-1), (0, 0, 0, 1))


def policy_logits(sides: tuple[Side, ...]) -> Tensor:
    return logits_of(stacked(sides, lambda side: side.policy, filler=PROMPT_LOGP))


def reference_logits(sides: tuple[Side, ...]) -> Tensor:
    return logits_of(stacked(sides, lambda side: side.reference, filler=PROMPT_LOGP))


def rows_of(batch: PairBatch) -> list[PairBatch]:
    """Each pair as a batch of its own, with the two responses alone."""
    assert batch.rejected is not None

    def row(side: Side, index: int) -> Side:
        one = slice(index, index + 1)

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[one]

        return Side(
            policy=side.policy[one],
            mask=side.mask[one],
            reference=cut(side.reference),
            collision=cut(side.collision),
        )

    return [
        PairBatch(chosen=row(batch.chosen, i), rejected=row(batch.rejected, i)) for i in range(len(batch.chosen.policy))
    ]


def sides_of(batch: PairBatch) -> tuple[Side, Side]:
    assert batch.rejected is not None
    return batch.chosen, batch.rejected


def certain(batch: PairBatch) -> PairBatch:
    """The batch with chosen responses that always win, and rejected ones that never do."""
    ones = torch.ones(len(batch.chosen.policy), dtype=torch.float64)
    return replace(batch, win_probability=ones, win_probability_rejected=0 * ones)


def in_float32(batch: PairBatch) -> PairBatch:
    """The two responses of each pair with new leaves, for code that knows no float64."""

    def single(side: Side) -> Side:
        assert side.reference is not None and side.collision is not None
        return Side(
            policy=side.policy.detach().float().requires_grad_(),
            mask=side.mask,
            reference=side.reference.float(),
            collision=side.collision.float(),
        )

    chosen, rejected = sides_of(batch)
    return PairBatch(chosen=single(chosen), rejected=single(rejected))


def loss_types_of(method: Callable[..., object], variable: str = "loss_type") -> set[str]:
    """The values that a trainer's own code compares ``variable`` with."""
    return set(re.findall(rf'\b{variable} == "([\w-]+)"', inspect.getsource(method)))
