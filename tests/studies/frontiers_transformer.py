"""Reward against KL on a tiny Llama that the production trainer trains, with a second labeller never trained on.

The same losses, five β each, and the same comparison as ``frontiers``, which has a table for a policy. Here SparsePO's
masks read hidden states, MallowsPO's dispersion is the entropy of a language model, and AdamW steps float32 weights.
Reward and KL are exact, over all answers (``word_model``).

    python -m tests.studies.frontiers_transformer --record
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging as transformers_logging

from pipeline.losses import Loss, load_preset
from tests.studies.frontiers import FACTORS, LOSSES, Line, report_of
from tests.studies.study_report import Report, main
from tests.studies.word_model import (
    compared,
    kl,
    next_words,
    reward,
    start_model,
    tastes_of,
    trained,
)

PAIRS, EPOCHS = 400, 10
# β at the middle of each loss's five.
MIDDLES: Mapping[str, float] = {"SimPO": 2.5}
USUAL = 0.3


def loss_of(name: str, factor: float) -> Loss:
    preset = LOSSES[name][0]
    settings: dict[str, Any] = {"weights": {"kind": "learned", "l1_ratio": 0.001}} if preset == "sparsepo" else {}
    return load_preset(preset, beta=MIDDLES.get(name, USUAL) * factor, **settings)


def lines_of(seed: int, names: Sequence[str], factors: Sequence[float], epochs: float = EPOCHS) -> dict[str, Line]:
    """Each loss's curve on one start policy and its pairs."""
    start, tastes = start_model(seed), tastes_of(seed)
    pairs, before = compared(start, tastes, PAIRS, seed), next_words(start)
    found: dict[str, Line] = {name: [] for name in names}
    for name in names:
        for factor in factors:
            policy = next_words(trained(start, pairs, loss_of(name, factor), seed, epochs=epochs))
            gains = [reward(policy, liked) - reward(before, liked) for liked in (tastes.first, tastes.second)]
            found[name].append((kl(policy, before), gains[0], gains[1]))
            print(seed, name, factor, *(f"{value:.3f}" for value in found[name][-1]), file=sys.stderr, flush=True)
    return found


def study(seeds: Sequence[int]) -> Report:
    transformers_logging.set_verbosity_error()
    by_seed = [lines_of(seed, [*LOSSES], FACTORS) for seed in seeds]
    return report_of({name: [of[name] for of in by_seed] for name in LOSSES})


if __name__ == "__main__":
    main(study, "frontiers_transformer", "reward against KL, tiny Llama", seeds=5)
