"""Which policies of a run stay on disk."""

from pydantic import Field

from pipeline.config.base import Closed


class Retention(Closed):
    """Weights that no stage will read again are removed, policy by policy, after each round; everything else stays."""

    last: int | None = Field(None, ge=1, description="keep the policies of so many rounds, the newest; default: all")
    best: bool = Field(True, description="and that of the best round: the gate's, or by win rate, reward or accuracy")
    start: bool = Field(True, description="and that of round 0, without which a complete run cannot be extended")
