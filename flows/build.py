"""From settings to objects. Heavy imports stand inside the cases, so only what is used is loaded."""

from typing import assert_never

from pipeline.config import ClassifierScorer, ExactMatchScorer, LengthScorer, Scorer, SlotScorer
from pipeline.label import Scorer as ScorerProtocol


def build_scorer(settings: Scorer) -> ScorerProtocol:
    """The labeller that ``settings`` describe. Raises ``UserError`` if its model cannot be loaded."""
    match settings:
        case SlotScorer():
            from reward_models.rules import SlotReward

            return SlotReward(settings)
        case ExactMatchScorer():
            from reward_models.rules import MatchReward

            return MatchReward(settings)
        case LengthScorer():
            from reward_models.rules import LengthReward

            return LengthReward(settings)
        case ClassifierScorer():
            from reward_models.classifier import ClassifierReward

            return ClassifierReward(settings)
    assert_never(settings)
