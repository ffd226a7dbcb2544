"""Counts of a run's data that decide whether a loss can be computed. Torch-free."""

from dataclasses import dataclass

from pipeline.types import TextGroup, TextPair, TextPreference, UnpairedText


@dataclass
class Contents:
    """Rows by kind, and how many training pairs have the fields that some losses read.

    Attributes:
        prompts, held_out: distinct prompts; texts: reference responses for the warm start.
        pairs, groups, unpaired: preferences to train on; at most one is nonzero, since a data set has one form.
        held_out_pairs: pairs whose prompts are held out.
        desirable: single responses marked good.
        soft: pairs whose label is not certain; scored, with_priors, with_wins: pairs that have both scores, both
            priors, a win probability; half_scored: pairs that have a score for chosen.
        neither: pairs with neither a win probability nor both scores.
    """

    prompts: int = 0
    held_out: int = 0
    texts: int = 0
    pairs: int = 0
    groups: int = 0
    unpaired: int = 0
    held_out_pairs: int = 0
    desirable: int = 0
    soft: int = 0
    scored: int = 0
    half_scored: int = 0
    with_priors: int = 0
    with_wins: int = 0
    neither: int = 0

    @property
    def preferences(self) -> int:
        """Rows of any form to train on."""
        return self.pairs + self.groups + self.unpaired

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by kind, without zeros."""
        kinds = ("prompts", "held_out", "texts", "pairs", "groups", "unpaired", "held_out_pairs")
        return {kind: size for kind in kinds if (size := vars(self)[kind])}

    def add(self, row: TextPreference) -> None:
        """Count one training preference."""
        match row:
            case TextGroup():
                self.groups += 1
            case UnpairedText():
                self.unpaired += 1
                self.desirable += row.desirable
            case TextPair():
                scored = row.chosen_score is not None and row.rejected_score is not None
                self.pairs += 1
                self.soft += row.soft_label != 1
                self.scored += scored
                self.half_scored += row.chosen_score is not None
                self.with_priors += row.chosen_prior is not None and row.rejected_prior is not None
                self.with_wins += row.win_probability is not None
                self.neither += row.win_probability is None and not scored
