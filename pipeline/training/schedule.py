"""Learning rates and batch order as functions of the step, so that resuming needs no state."""

import math

from pipeline.config import Optimisation


def rate_factor(step: int, steps: int, settings: Optimisation) -> float:
    """What the learning rate of step ``step`` (from 0) of ``steps`` is multiplied with, in (0, 1].

    Rises linearly over the first ``warmup`` share of the steps, then stays, or falls linearly or
    along half a cosine towards 0, which it would reach one step after the last.

    >>> settings = Optimisation(schedule="linear", warmup=0.5)
    >>> [rate_factor(step, 4, settings) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, steps - warm)
    return 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def steps_of(examples: int, settings: Optimisation) -> int:
    """Optimiser steps of a run over ``examples`` pairs (or texts), at least 1."""
    steps = max(1, round(settings.epochs * math.ceil(examples / settings.batch_size)))
    return min(steps, settings.max_steps or steps)
