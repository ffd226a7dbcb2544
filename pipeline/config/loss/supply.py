"""What the stages of a round supply for a loss, derived from what it reads. Torch-free."""

from typing import Literal

from pipeline.config import Composition, Replay
from pipeline.config.discriminator import Discriminator
from pipeline.config.loss.components import ActivationWeights, GivenWeights, LearnedPrior, LearnedWeights
from pipeline.config.loss.needs import needs_of, references_of
from pipeline.config.loss.terms import WinLabel


def takes_groups(loss: Composition) -> bool:
    """Whether rounds train on groups of K responses; else on pairs, or on single responses where those are given."""
    return loss.head is not None


def takes_unpaired(loss: Composition) -> bool:
    """Whether rounds can train on single responses that are marked good or bad.

    Token weights of contrasting models are not made for those: their sign is of the better or the worse one of a pair.
    """
    return loss.unpaired and not reads_contrast(loss)


def takes_texts(loss: Composition) -> bool:
    """Whether the chosen response alone is trained on."""
    return "rejected" not in needs_of(loss) and loss.head is None


def win_against(loss: Composition) -> Literal["average", "other"]:
    """Whom the win probabilities of a pair are against: as a label, the other response."""
    return "other" if isinstance(loss.label, WinLabel) else "average"


def samples_calibration(loss: Composition) -> bool:
    """Whether the reference policy answers the round's prompts too (VPO, XPO)."""
    return "calibration" in needs_of(loss)


def reads_contrast(loss: Composition) -> bool:
    """Whether two contrasting models weigh the tokens (TIS-DPO)."""
    return isinstance(loss.weights, GivenWeights)


def stores_reference(loss: Composition) -> bool:
    """Whether anything of the reference, or of contrasting models, is computed before training."""
    return references_of(loss) > 0 or loss.dispersion is not None or reads_contrast(loss)


def reference_name(number: int) -> str:
    """The folder of the reference stage that the loss's reference ``number``, from 0, fills."""
    return f"reference_{number}"


def trains_with_reference(loss: Composition) -> bool:
    """Whether the reference model stands beside the policy in training: what the loss reads cannot be stored."""
    learned = isinstance(loss.weights, LearnedWeights | ActivationWeights) or isinstance(loss.prior, LearnedPrior)
    return learned or loss.kl > 0 or loss.adversary is not None


def replayed_ages(replay: Replay, round_: int) -> list[int]:
    """Ages in rounds of what ``round_`` may replay, the youngest first; 1 is the round before."""
    oldest = round_ - 1 if replay.max_age is None else min(replay.max_age, round_ - 1)
    return [*range(1, oldest + 1)] if replay.share else []


def buys(settings: Discriminator, round_: int) -> bool:
    """Whether gold is bought in ``round_``; a static reward model's is all bought in the first."""
    return round_ == 1 or settings.silver != "static"


def bought(settings: Discriminator, rounds: int, round_: int) -> int:
    """How many gold comparisons ``round_`` of ``rounds`` buys."""
    if not buys(settings, round_):
        return 0
    return settings.budget * rounds if settings.silver == "static" else settings.budget
