"""Training rows of a round, from scored groups, earlier rounds and data sets. Torch-free."""

from pipeline.training.pairs.make import drop_repeated, make_groups, make_marked, make_pairs
from pipeline.training.pairs.replay import ages_within_drift, draw, shares
from pipeline.training.pairs.wins import Opponent, win_probabilities, win_probability

__all__ = [
    "Opponent",
    "ages_within_drift",
    "draw",
    "drop_repeated",
    "make_groups",
    "make_marked",
    "make_pairs",
    "shares",
    "win_probabilities",
    "win_probability",
]
