"""Preference losses as data: ``load_preset(name)(PairBatch(...)).per_pair``."""

from pipeline.config import Composition
from pipeline.losses.batch import Batch, GroupBatch, PairBatch, Side, UnpairedBatch
from pipeline.losses.loss import Loss, LossOutput, load_preset, preset_names

__all__ = [
    "Batch",
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
