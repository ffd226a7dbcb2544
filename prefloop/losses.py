"""Losses and their batches, for a training loop of your own: one name for them in a checkout and in a wheel."""

from pipeline.losses import (
    Composition,
    GroupBatch,
    Loss,
    LossOutput,
    PairBatch,
    Side,
    UnpairedBatch,
    load_preset,
    preset_names,
)

__all__ = [
    "Composition",
    "GroupBatch",
    "Loss",
    "LossOutput",
    "PairBatch",
    "Side",
    "UnpairedBatch",
    "load_preset",
    "preset_names",
]
