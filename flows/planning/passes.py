"""How training will compute rows, told before anything runs: shared, packed or padded, why, and what it costs."""

from dataclasses import dataclass
from typing import Any

import torch

from flows.planning.counts import PlannedRound
from pipeline.config import RunConfig
from pipeline.losses import Loss
from pipeline.models.architectures import auto_class
from pipeline.models.attention.reasons import why_unlike_rows
from pipeline.training.batches.examples import check_examples
from pipeline.training.batches.micro_batches import cut_for, tokens_of_a_pass
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.types import derive_seed


@dataclass(frozen=True, slots=True)
class PlannedPasses:
    """Tokens of a pass over a round's examples, and why rows will be padded; None: they will not."""

    tokens: PassTokens
    padded_because: str | None

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        tokens = self.tokens
        return {
            "kind": tokens.kind(self.padded_because),
            "padded_because": self.padded_because,
            "shared": tokens.shared,
            "packed": tokens.packed,
            "padded": tokens.padded,
        }


def planned_passes(config: RunConfig, shape: Any, planned: PlannedRound, device: str) -> PlannedPasses:
    """Tell it from the model's config ``shape`` and the lengths of the examples; no weights are made or read.

    Training tries it on the model itself, which may find more: a model whose code no class name tells.
    """
    loss = Loss(config.loss.preset, config.loss)
    survey = check_examples(planned.examples, loss.name, loss.needs)
    cut, seed = cut_for(config.training, device, packing=False), derive_seed(config.seed, "train", 1)
    tokens = tokens_of_a_pass(survey, config.training.batch_size, cut, seed)
    if not config.training.packing:
        return PlannedPasses(tokens, "training.packing is false")
    with torch.device("meta"):
        model = auto_class(shape).from_config(shape, trust_remote_code=config.trusts_policy)
    return PlannedPasses(tokens, why_unlike_rows(model))
