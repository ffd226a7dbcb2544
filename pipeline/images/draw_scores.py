"""What training knows of a module that scores images: draws stand for tokens. Needs no diffusers."""

from typing import Any

from pydantic import JsonValue
from torch import nn

from pipeline.config.images.scoring import ImageScore
from pipeline.models.classifier_scores import RowScores
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.weight_format import Precision


class DrawScores(nn.Module):
    """Scores of draws, where ``TokenLogps`` gives log-probabilities of tokens.

    Attributes:
        model: the network that is trained, perhaps in an adapter's wrapper.
        settings: of the scores.
        dtype: of matrix products.
        draws: of an image in an epoch; an example's ids are those of all epochs, one epoch after the other.
        padded_because: why rows are no streams.
    """

    model: Any
    settings: ImageScore
    dtype: Precision
    draws: int
    padded_because: str | None = "an image's draws share no prompt"

    def with_network(self, network: Any) -> "DrawScores":
        """Return the same scores under another network, such as a frozen reference."""
        raise NotImplementedError


# Modules from ids to what a loss reads of them.
FactsModule = TokenLogps | RowScores | DrawScores


def score_key(scores: nn.Module | None) -> list[JsonValue]:
    """Return what a training run's key holds of how images are scored; empty for text and rewards."""
    return [scores.settings.identity()] if isinstance(scores, DrawScores) else []
