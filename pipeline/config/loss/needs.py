"""What a loss needs, derived from its components and from nothing else. Torch-free.

The names are those of fields of ``Side`` and ``PairBatch`` in pipeline/losses/batch.py; ``responses`` stands for a
``GroupBatch``.
"""

from typing import Literal

from pipeline.config.loss.components import (
    ActivationWeights,
    EditWeights,
    ExtrapolatedPrior,
    GapMargin,
    GivenPrior,
    GivenWeights,
    HarmonicPrior,
    LearnedPrior,
    LearnedWeights,
    MixturePrior,
    NoPrior,
    RewardMargin,
)
from pipeline.config.loss.composition import Composition
from pipeline.config.loss.terms import RewardLabel, WinLabel

REWARDS = frozenset({"reward_chosen", "reward_rejected"})


def needs_of(loss: Composition) -> frozenset[str]:
    """Optional fields that the loss reads."""
    found: set[str] = set()
    if loss.links:
        found.add("rejected")
    if references_of(loss) > 0:
        found.add("reference")
    if loss.kl > 0:
        found.add("kl")
    if loss.pair_weight == "policy":
        found.add("collision")
    if loss.dispersion is not None:
        found.add("dispersion")
    return frozenset(found) | _of_tokens(loss) | _of_labels(loss) | _of_regularisers(loss)


def references_of(loss: Composition) -> int:
    """How many reference policies it reads log-probabilities of."""
    if not loss.links and loss.head is None:
        return 1 if _reads_ratio(loss) else 0
    match loss.prior:
        case ExtrapolatedPrior():
            return 2
        case MixturePrior():
            return len(loss.prior.weights)
        case HarmonicPrior():
            return 2 if loss.prior.weights == "adaptive" else len(loss.prior.weights)
        case NoPrior() | GivenPrior():
            return 1 if isinstance(loss.margin, GapMargin) or _reads_ratio(loss) else 0
    return 1


def stateful(loss: Composition) -> bool:
    """Whether it reads statistics over the whole batch, and running ones."""
    running = any(term.target == "running_mean" for term in loss.terms)
    return loss.scale is not None or isinstance(loss.margin, GapMargin) or running or reads_baseline(loss)


def reads_baseline(loss: Composition) -> bool:
    """Whether it estimates KL(π ‖ π_ref) from responses that do not belong: of single ones, those to other prompts."""
    return any(term.target == "baseline" for term in loss.terms)


def trains_beside(loss: Composition) -> bool:
    """Whether it trains heads or critics beside the policy."""
    learned = isinstance(loss.weights, LearnedWeights) or isinstance(loss.prior, LearnedPrior)
    return learned or loss.advantage is not None or loss.adversary is not None


def _reads_ratio(loss: Composition) -> bool:
    return loss.calibration is not None and loss.calibration.ratio


def _of_tokens(loss: Composition) -> set[str]:
    match loss.weights:
        case EditWeights():
            found = {"edited"}
        case LearnedWeights():
            found = {"weights"} | ({"kl_weights"} if loss.weights.masks == "independent" else set())
        case ActivationWeights() | GivenWeights():
            found = {"weights"}
        case _:
            found = set()
    return found | ({"prior"} if isinstance(loss.prior, LearnedPrior | GivenPrior) else set())


def _of_labels(loss: Composition) -> set[str]:
    found: set[str] = set()
    if isinstance(loss.margin, RewardMargin) or isinstance(loss.label, RewardLabel):
        found |= REWARDS
    if isinstance(loss.label, WinLabel) or any(term.target == "win" for term in loss.terms):
        found.add("win_probability")
    if loss.head is not None:
        # To rank two responses it is enough to know the better one. Cross-entropy with that alone would be DPO.
        found |= {"responses"} | (set() if loss.head.kind == "rank" else REWARDS)
    return found


def _of_regularisers(loss: Composition) -> set[str]:
    found: set[str] = set()
    if loss.calibration is not None and loss.calibration.source == "samples":
        found.add("calibration")
    if loss.advantage is not None:
        found |= REWARDS | {"value"}
    if loss.adversary is not None:
        found |= {"critic_chosen", "critic_rejected"}
    return found


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


def trains_with_reference(loss: Composition) -> bool:
    """Whether the reference model stands beside the policy in training: what the loss reads cannot be stored."""
    learned = isinstance(loss.weights, LearnedWeights | ActivationWeights) or isinstance(loss.prior, LearnedPrior)
    return learned or loss.kl > 0 or loss.adversary is not None
