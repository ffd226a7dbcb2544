"""The win rate at equal length, with an interval from the likelihood. Torch-free.

The regression of AlpacaEval 2 (arXiv:2404.04475) without its term for instruction difficulty:
P(win) = σ(a + b tanh(Δ / sd Δ)), Δ the difference in tokens; σ(a) is the win rate at Δ = 0.
"""

import math

import numpy as np

from pipeline.evaluation.intervals import Floats, Interval

# Half the 95 % quantile of χ² with one degree of freedom.
_DEPTH = 1.9207294103470494
# A slight penalty on the slope keeps it finite when length alone separates wins from losses.
_PENALTY = 1e-2
_FARTHEST = 64.0


def equal_length_wins(won: Floats, longer: Floats) -> Interval:
    """Return σ(a) and its profile-likelihood interval, for wins (ties count half) and differences in tokens.

    Half a win and half a loss at Δ = 0 are added: if all wins are longer, nothing is known about equal length, and the
    rate is 1/2. Where a is near the ends of its range, the likelihood falls much faster on one side than on the other;
    resampled estimates miss that. Ties, and means over several responses, vary less than yes or no, so the likelihood
    counts for more, in proportion (quasi-likelihood; McCullagh and Nelder 1989, chapter 9).
    """
    scale = float(longer.std()) or 1.0
    x, y = np.append(np.tanh(longer / scale), 0.0), np.append(won, 0.5)
    level, slope, highest = _fit(x, y, None)
    chance = _chance(level + slope * x)
    # The added half win and half loss vary as one of each.
    spread = float(((won - chance[:-1]) ** 2).sum() + 0.5 * (chance[-1] ** 2 + (1 - chance[-1]) ** 2))
    least = highest - _DEPTH * min(spread / float((chance * (1 - chance)).sum()), 1.0)
    ends = [_sigmoid(level + sign * _distance(x, y, level, sign, least)) for sign in (-1, 1)]
    return Interval(_sigmoid(level), ends[0], ends[1])


def equal_length_rate(won: Floats, longer: Floats) -> float:
    """Return σ(a) alone."""
    scale = float(longer.std()) or 1.0
    return _sigmoid(_fit(np.append(np.tanh(longer / scale), 0.0), np.append(won, 0.5), None)[0])


def _distance(x: Floats, y: Floats, level: float, sign: int, least: float) -> float:
    """How far a can go from ``level`` before no slope gives a log-likelihood of ``least``."""
    near, far = 0.0, 1.0
    while far < _FARTHEST and _fit(x, y, level + sign * far)[2] > least:
        near, far = far, 2 * far
    for _ in range(30):
        middle = (near + far) / 2
        near, far = (middle, far) if _fit(x, y, level + sign * middle)[2] > least else (near, middle)
    return far


def _fit(x: Floats, y: Floats, level: float | None) -> tuple[float, float, float]:
    """(a, b, penalised log-likelihood) of the logistic regression, by Newton's method; a is ``level`` if given."""
    weights = np.array([level or 0.0, 0.0])
    design = np.column_stack([np.ones(len(x)), x])
    free = [1] if level is not None else [0, 1]
    penalty = np.diag([0.0, _PENALTY])
    for _ in range(50):
        chance = _chance(design @ weights)
        uphill = design.T @ (y - chance) - penalty @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + penalty + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(curvature[np.ix_(free, free)], uphill[free]), -2.0, 2.0)
        weights[free] += step
        if np.abs(step).max() < 1e-7:
            break
    z = design @ weights
    likelihood = -float((np.logaddexp(0, -z) * y + np.logaddexp(0, z) * (1 - y)).sum())
    return float(weights[0]), float(weights[1]), likelihood - _PENALTY / 2 * float(weights[1]) ** 2


def _chance(z: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-np.clip(z, -30, 30)))
    return chance


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-max(min(z, 700.0), -700.0)))
