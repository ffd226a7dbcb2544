"""``Needs``: all inputs of a loss, derived once from its components. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.config.loss.components import (
    ActivationWeights,
    EditWeights,
    ExtrapolatedPrior,
    GivenPrior,
    GivenWeights,
    HarmonicPrior,
    LearnedPrior,
    LearnedWeights,
    MixturePrior,
    NoPrior,
)
from pipeline.config.loss.formula import Formula
from pipeline.config.loss.margins import GapMargin, RewardMargin, SortedMargin, WinMargin
from pipeline.config.loss.terms import RewardLabel, TokenAdvantageHead, WinLabel

REWARDS = frozenset({"reward_chosen", "reward_rejected"})
# Kinds of training example: a text to imitate, a pair, one response marked good or bad, K responses.
ExampleKind = Literal["text", "pair", "unpaired", "group"]
# Quantities of each token that a model can compute besides its log-probability.
Fact = Literal["kl", "collision", "entropy", "hidden", "reference_hidden", "reference_last_hidden"]
OF_REFERENCE: frozenset[Fact] = frozenset({"kl", "reference_hidden", "reference_last_hidden"})


@dataclass(frozen=True, slots=True)
class Needs:
    """The inputs that a loss reads.

    Iteration and ``in`` go over ``fields``.

    Attributes:
        fields: optional fields of ``Side`` and ``PairBatch`` (pipeline/losses/batch.py); ``responses`` stands for a
            ``GroupBatch``.
        references: number of reference policies whose log-probabilities it reads.
        token_facts: quantities that it reads from policy and reference model besides log-probabilities.
        groups: it trains on K responses to a prompt, not on pairs.
        only_chosen: it trains on the chosen response alone.
        one_sided: it has terms of one response each, which take no soft labels.
        unpaired: it is defined for single responses marked good or bad.
        contrast: two contrasting models weigh the tokens (TIS-DPO).
        given_prior: the data gives log ζ of each response.
        baseline: it estimates KL(π ‖ π_ref) from mismatched responses; for single responses, those to other prompts.
        statistics: it reads statistics over the whole batch, and running ones.
        auxiliary: it trains heads or critics together with the policy.
        live_reference: it needs the reference model during training, since what it reads cannot be stored.
        opponent: opponent in the win probabilities of a pair; for a label, the other response.
    """

    fields: frozenset[str]
    references: int
    token_facts: frozenset[Fact]
    groups: bool
    only_chosen: bool
    one_sided: bool
    unpaired: bool
    contrast: bool
    given_prior: bool
    baseline: bool
    statistics: bool
    auxiliary: bool
    live_reference: bool
    opponent: Literal["average", "other"]

    def __contains__(self, field: object) -> bool:
        return field in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    @property
    def calibration(self) -> bool:
        """Whether the reference policy answers the round's prompts too (VPO, XPO)."""
        return "calibration" in self.fields

    @property
    def advantages(self) -> bool:
        """Whether advantages of the round's tokens are estimated before training (APA)."""
        return "advantage" in self.fields

    @property
    def stored_reference(self) -> bool:
        """Whether outputs of the reference or of contrasting models are computed before training."""
        return self.references > 0 or "dispersion" in self.fields or self.contrast

    @property
    def accepts_unpaired(self) -> bool:
        """Whether a run can train it on single responses marked good or bad.

        Weights from contrasting models have the sign of the better or the worse response of a pair, so they are not
        made for single ones.
        """
        return self.unpaired and not self.contrast

    @property
    def unmovable(self) -> str | None:
        """Why the reference cannot move while training, with what is allowed; None: it can."""
        if self.references != 1:
            what = f"reads {self.references or 'no'} reference{'' if self.references == 1 else 's'}"
        elif self.live_reference:
            what = "reads more of the reference than its log-probabilities"
        elif "dispersion" in self:
            what = "has a dispersion, which is the entropy of the round's own reference"
        else:
            return None
        return f"{what}; allowed: a loss that reads the log-probabilities of one reference, or reference_sync: null"

    def mismatched(self, kind: ExampleKind) -> bool:
        """Whether examples of ``kind`` carry a response to another prompt (KTO); pairs need none."""
        return kind == "unpaired" and self.baseline


def needs_of(loss: Formula) -> Needs:
    """Derive the record; that of a sum is what its parts read together."""
    first, *others = [_of_one(part) for part in loss.parts]
    for other in others:
        first = _joined(first, other)
    return first


def _joined(one: Needs, other: Needs) -> Needs:
    """What two losses on the same examples read."""
    wins = [needs for needs in (one, other) if "win_probability" in needs.fields]
    return Needs(
        fields=one.fields | other.fields,
        references=max(one.references, other.references),
        token_facts=one.token_facts | other.token_facts,
        groups=one.groups or other.groups,
        only_chosen=one.only_chosen and other.only_chosen,
        one_sided=one.one_sided or other.one_sided,
        unpaired=one.unpaired and other.unpaired,
        contrast=one.contrast or other.contrast,
        given_prior=one.given_prior or other.given_prior,
        baseline=one.baseline or other.baseline,
        statistics=one.statistics or other.statistics,
        auxiliary=one.auxiliary or other.auxiliary,
        live_reference=one.live_reference or other.live_reference,
        opponent=(wins or [one])[0].opponent,
    )


def _of_one(loss: Formula) -> Needs:
    """Derive the record of one formula. Only this function knows what each component reads."""
    fields = _of_preferences(loss) | _of_tokens(loss) | _of_labels(loss) | _of_regularisers(loss)
    learned = isinstance(loss.weights, LearnedWeights) or isinstance(loss.prior, LearnedPrior)
    hidden = learned or isinstance(loss.weights, ActivationWeights)
    baseline = any(term.target == "baseline" for term in loss.terms)
    running = any(term.target in ("batch_mean", "running_mean") for term in loss.terms)
    return Needs(
        fields=frozenset(fields),
        references=_references(loss),
        token_facts=_token_facts(fields, hidden),
        groups=loss.head is not None,
        only_chosen="rejected" not in fields and loss.head is None,
        one_sided=loss.one_sided,
        unpaired=loss.unpaired,
        contrast=isinstance(loss.weights, GivenWeights),
        given_prior=isinstance(loss.prior, GivenPrior),
        baseline=baseline,
        statistics=loss.scale is not None or isinstance(loss.margin, GapMargin | SortedMargin) or running or baseline,
        auxiliary=learned or bool(fields & {"value", "token_value", "critic_chosen"}),
        live_reference=hidden or loss.kl > 0 or loss.adversary is not None,
        opponent=_opponent(loss),
    )


def _opponent(loss: Formula) -> Literal["average", "other"]:
    if isinstance(loss.margin, WinMargin):
        return loss.margin.against
    return "other" if isinstance(loss.label, WinLabel) else "average"


def _of_preferences(loss: Formula) -> set[str]:
    asked = {
        "rejected": bool(loss.links),
        "reference": _references(loss) > 0,
        "kl": loss.kl > 0,
        "collision": loss.pair_weight == "policy",
        "dispersion": loss.dispersion is not None,
    }
    return {field for field, reads in asked.items() if reads}


def _token_facts(fields: set[str], hidden: bool) -> frozenset[Fact]:
    asked: dict[Fact, bool] = {
        "kl": "kl" in fields,
        "collision": "collision" in fields,
        "hidden": bool(fields & {"value", "token_value", "critic_chosen"}),
        "reference_last_hidden": "critic_chosen" in fields,
        "reference_hidden": hidden,
    }
    return frozenset(fact for fact, reads in asked.items() if reads)


def _references(loss: Formula) -> int:
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


def _reads_ratio(loss: Formula) -> bool:
    return loss.calibration is not None and loss.calibration.ratio


def _of_tokens(loss: Formula) -> set[str]:
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


def _of_labels(loss: Formula) -> set[str]:
    found: set[str] = set()
    if isinstance(loss.margin, RewardMargin) or isinstance(loss.label, RewardLabel):
        found |= REWARDS
    if (
        isinstance(loss.label, WinLabel)
        or isinstance(loss.margin, WinMargin)
        or any(term.target == "win" for term in loss.terms)
    ):
        found.add("win_probability")
    if loss.head is not None:
        # To rank two responses it is enough to know the better one. Cross-entropy with that alone would be DPO.
        found |= {"responses"} | (set() if loss.head.kind == "rank" else REWARDS)
    if isinstance(loss.head, TokenAdvantageHead):
        found |= {"advantage", "returns", "token_value"}
    return found


def _of_regularisers(loss: Formula) -> set[str]:
    found: set[str] = set()
    if loss.calibration is not None and loss.calibration.source == "samples":
        found.add("calibration")
    if loss.advantage is not None:
        found |= REWARDS | {"value"}
    if loss.adversary is not None:
        found |= {"critic_chosen", "critic_rejected"}
    return found
