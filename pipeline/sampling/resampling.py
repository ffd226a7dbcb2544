"""Samples of a geometric mixture π^(1 − b) μ^b of whole responses, from samples of π alone. Torch-free.

Of K responses of π, n are kept at random with weights w = (μ / π)^b, without replacement. As K grows their distribution
tends to the mixture. How many of the K count is their effective number (Σ w)² / Σ w²: with log(μ / π) of deviation d
nats, a share of about e^(−b² d²).
"""

import math
import random
from collections.abc import Sequence

# Below this share a few responses decide all, and what is kept is not the mixture.
LEAST_EFFECTIVE = 0.5


def log_weights(ours: Sequence[float], theirs: Sequence[float], weight: float) -> list[float]:
    """Return b · (log μ − log π) of each response from the two log-probabilities of all of it."""
    return [weight * (other - own) for own, other in zip(ours, theirs, strict=True)]


def effective_share(logs: Sequence[float]) -> float:
    """Return the effective share (Σ w)² / (K Σ w²) of K responses with log-weights ``logs``, from 1/K to 1."""
    largest = max(logs)
    weights = [math.exp(log - largest) for log in logs]
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


def overall_share(shares: Sequence[float]) -> float:
    """Return the effective share of many prompts: the harmonic mean, so that Σ w² of all counts."""
    return len(shares) / sum(1 / share for share in shares)


def kept_places(logs: Sequence[float], n: int, seed: int) -> list[int]:
    """Return the places of ``n`` responses drawn one after the other with weights e^``logs``, in the order of drawing.

    The largest of log w plus Gumbel noise are such a draw.
    """
    draw = random.Random(seed)  # noqa: S311 - draws, not secrets
    noisy = [log - math.log(draw.expovariate(1.0) or 1e-300) for log in logs]
    return sorted(range(len(logs)), key=lambda place: -noisy[place])[:n]
