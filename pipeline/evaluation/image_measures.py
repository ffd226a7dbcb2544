"""Measures of images: mean rewards, and how far the images for one prompt are apart. Torch-free."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Group


def mean_of_groups(groups: Iterable[Group]) -> float | None:
    """Return the mean score over all responses that have one; None without any."""
    scores = [score for group in groups for score in group.scores if score is not None]
    return sum(scores) / len(scores) if scores else None


def distance_within(images: Sequence[tuple[tuple[int, ...], NDArray[np.float32]]]) -> float | None:
    """Return the mean Euclidean distance between two images of one condition, over conditions; None without two.

    ``images``: the ids of each one's condition, and its latents.

    >>> import numpy as np
    >>> distance_within([((0,), np.zeros(4, np.float32)), ((0,), np.ones(4, np.float32))])
    2.0
    """
    by_condition: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}
    for condition, latents in images:
        by_condition.setdefault(condition, []).append(latents)
    means = []
    for same in by_condition.values():
        if len(same) > 1:
            rows = np.stack(same).astype(np.float64).reshape(len(same), -1)
            squares = (rows**2).sum(1)
            apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0))
            means.append(apart.sum() / (len(same) * (len(same) - 1)))
    return float(np.mean(means)) if means else None
