"""Preference losses as data: ``load_preset(name)(PairBatch(...)).per_pair``."""

from pipeline.losses.batch import PairBatch, Side
from pipeline.losses.composition import Composition
from pipeline.losses.loss import Loss, LossOutput
from pipeline.losses.presets import load_preset, preset_names

__all__ = ["Composition", "Loss", "LossOutput", "PairBatch", "Side", "load_preset", "preset_names"]
