"""A loss as data: the component at each place of the formula. Torch-free.

The formula is in pipeline/losses/loss.py.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import OPERATIONAL, Closed
from pipeline.config.loss.components import (
    EqualWeights,
    ExtrapolatedPrior,
    GivenPrior,
    HarmonicPrior,
    IdentityShape,
    LearnedPrior,
    LengthPrior,
    MixturePrior,
    NoPrior,
    Prior,
    ReferencePrior,
    Shape,
    Weights,
)
from pipeline.config.loss.margins import HomeMargin, Margin, NoMargin, SortedMargin, WinMargin
from pipeline.config.loss.terms import (
    Advantage,
    Adversary,
    BatchScale,
    Calibration,
    DataLabel,
    EntropyDispersion,
    HeadSettings,
    Label,
    Link,
    MallowsPhiLink,
    PlainLink,
    SmoothLabel,
    Term,
    TokenAdvantageHead,
    WinLabel,
)

Family = Literal["dpo", "prior", "dispersion", "link", "reward", "list", "one_sided", "regularised", "supervised"]
# Priors whose normaliser is unknown. It is one number for both responses, so it cancels in a difference of two scores
# if these are sums over tokens: not per token, not with weights, and not in a function of each score alone.
UNNORMALISED = (ExtrapolatedPrior, LengthPrior, LearnedPrior, GivenPrior, HarmonicPrior, MixturePrior)

# Fields that only pairs use; for single responses and groups they would be ignored without an error.
OF_PAIRS = ("kl_stop_chosen", "shape", "scale", "dispersion", "pair_weight", "calibration", "advantage", "adversary")
# Weights that compare the two responses of a pair, or whose masks are kept small pair by pair.
WEIGHTS_OF_PAIRS = ("edits", "subset", "tail", "learned")


# Fields that a loss of likelihood alone does not read.
OF_PREFERENCES = (
    "weights",
    "kl",
    "shape",
    "scale",
    "dispersion",
    "weight",
    "unscale",
    "pair_weight",
    "advantage",
    "adversary",
)


class Formula(Closed):
    """One loss. The default of each field drops it from the formula."""

    summary: str = Field("", description="one line", json_schema_extra=OPERATIONAL)
    formula: str = Field("", description="in the notation of the paper", json_schema_extra=OPERATIONAL)
    citation: str = Field("", description="where it was published", json_schema_extra=OPERATIONAL)
    family: Family | None = Field(None, json_schema_extra=OPERATIONAL)
    identity_with: str = Field("", description="when it equals another loss", json_schema_extra=OPERATIONAL)
    departures: tuple[str, ...] = Field((), description="from paper or published code", json_schema_extra=OPERATIONAL)

    prior: Prior = NoPrior()
    exponent: float = Field(1.0, gt=0, description="a, factor of log π in the score")
    weights: Weights = EqualWeights()
    aggregate: Literal["sum", "mean", "power"] = Field(
        "sum", description="how tokens add up to the score of a response"
    )
    length_power: float = Field(1.0, ge=0, description="q of power: the sum over |y|^q")
    kl: float = Field(0.0, ge=0, description="κ, weight of Σ_t KL(π_ref ‖ π) in the score")
    kl_stop_chosen: bool = Field(False, description="no gradient through the chosen response's KL")
    shape: Shape = IdentityShape()
    beta: float = Field(1.0, gt=0, description="β, scale of the scores")
    scale: BatchScale | None = Field(None, description="makes β follow the batch")
    dispersion: EntropyDispersion | None = Field(None, description="d, makes β follow the pair")
    margin: Margin = NoMargin()
    link: Link = PlainLink(kind="none")
    terms: tuple[Term, ...] = Field((), description="one-sided terms, besides the term of link")
    head: HeadSettings | None = Field(None, description="for a loss over K responses, instead of link and terms")
    label: Label = DataLabel()
    weight: float = Field(1.0, gt=0, description="A, weight of the preference terms")
    unscale: Literal[0, 1, 2] = Field(0, description="the preference terms are divided by β to this power")
    pair_weight: Literal["none", "policy"] = Field(
        "none", description="ω; policy: how likely the policy makes the pair"
    )
    pair_weight_cap: float | None = Field(1.0, gt=0, description="largest ω; null: none")
    nll: float = Field(0.0, ge=0, description="weight of the chosen response's negative log-likelihood")
    nll_aggregate: Literal["mean", "sum"] = Field("mean", description="how its tokens add up")
    calibration: Calibration | None = None
    advantage: Advantage | None = None
    adversary: Adversary | None = None

    @property
    def parts(self) -> "tuple[Formula, ...]":
        """The losses that it is the sum of: itself alone."""
        return (self,)

    @property
    def inputs(self) -> "Formula":
        """The components that say what a run must supply: of a sum, those of its parts."""
        return self

    @property
    def one_sided(self) -> bool:
        """Whether a term reads one response alone, or scores are not compared as differences."""
        return any(term.chosen + term.rejected != 0 for term in self.terms) or (
            self.head is not None and self.head.kind in ("nca", "apa", "apa_token")
        )

    @property
    def unpaired(self) -> bool:
        """Whether it can be computed from single responses marked good or bad."""
        if isinstance(self.margin, SortedMargin) and self.margin.compare == "responses":
            plain = self.link.kind not in ("reverse_kl", "rao_kupper") and self.label.kind in (
                "data",
                "smoothed",
                "robust",
            )
            return plain and self.nll == 0 and not self._set(*OF_PAIRS)
        single = all((term.chosen == 0) != (term.rejected == 0) and term.target != "win" for term in self.terms)
        terms_alone = self.link.kind == "none" and self.head is None and self.nll == 0 and not self._set(*OF_PAIRS)
        return terms_alone and bool(self.terms) and single and self.weights.kind not in WEIGHTS_OF_PAIRS

    @property
    def links(self) -> Sequence[Link]:
        """All links of the loss."""
        own = [] if self.link.kind == "none" else [self.link]
        return [*own, *(term.link for term in self.terms)]

    @model_validator(mode="after")
    def _has_a_term(self) -> "Formula":
        if not any(part.links or part.head is not None or part.nll for part in self.parts):
            raise ValueError("neither a link, terms, a head nor a weight for nll: the loss would be 0")
        if self.head is not None and self.links:
            raise ValueError(f"head: {self.head.kind}: a loss over K responses has no link and no terms")
        if any(term.link.kind == "none" or (term.chosen == 0 and term.rejected == 0) for term in self.terms):
            raise ValueError("terms: each needs a link, and a factor for chosen or rejected that is not 0")
        return self

    @model_validator(mode="after")
    def _one_sided_terms_are_normalised(self) -> "Formula":
        if not self.one_sided:
            return self
        partial = isinstance(self.prior, ReferencePrior) and self.prior.weight != 1
        if isinstance(self.prior, UNNORMALISED) or partial:
            raise ValueError(
                f"prior: {self.prior.kind} is not normalised, which only differences of two scores allow; "
                "this loss has one-sided terms: use reference or none"
            )
        if self.label.kind != "data":
            raise ValueError(f"label: {self.label.kind}: one-sided terms treat labels as certain; use data")
        return self

    @model_validator(mode="after")
    def _normaliser_cancels(self) -> "Formula":
        if not isinstance(self.prior, UNNORMALISED) or not (self.links or self.head):
            return self
        for name, plain, value in (
            ("aggregate", "sum", self.aggregate),
            ("weights", "equal", self.weights.kind),
            ("shape", "identity", self.shape.kind),
        ):
            if value != plain:
                raise ValueError(
                    f"{name}: {value}: the prior {self.prior.kind} is not normalised, and its unknown constant cancels "
                    f"only between plain sums of log-probabilities; use {plain}, or the prior reference or none"
                )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "Formula":
        if any(link.kind == "reverse_kl" for link in self.links) and self.label.kind not in ("rewards", "smoothed"):
            raise ValueError("link: reverse_kl needs a label strictly between 0 and 1: rewards or smoothed")
        if self.link.kind == "reverse_kl" and isinstance(self.label, SmoothLabel) and self.label.epsilon == 0:
            raise ValueError("label.epsilon: 0: reverse_kl needs a label below 1, so epsilon above 0")
        if isinstance(self.link, MallowsPhiLink) and self.dispersion is None:
            raise ValueError("dispersion: the link mallows_phi needs it for its φ")
        if any(term.link.kind in ("mallows_phi", "reverse_kl", "rao_kupper") for term in self.terms):
            raise ValueError("terms: the links mallows_phi, reverse_kl and rao_kupper compare a pair; only as link")
        if self.link.kind == "rao_kupper" and self.label.kind != "data":
            raise ValueError(f"label: {self.label.kind}: rao_kupper recognises ties by the data's labels; use data")
        if self.shape.kind == "log_odds" and not (isinstance(self.prior, NoPrior) and self.aggregate == "mean"):
            raise ValueError("shape: log_odds needs a likelihood a token: prior none and aggregate mean")
        if self.scale is not None and (self.margin.kind == "gap" or self.pair_weight != "none"):
            raise ValueError(
                "scale: batch needs the statistics and the weights of pairs for itself: no gap, no pair_weight"
            )
        if isinstance(self.margin, SortedMargin):
            self._require_plain_scores()
        both = isinstance(self.label, WinLabel) or any(term.target == "win" for term in self.terms)
        if isinstance(self.margin, WinMargin) and both:
            raise ValueError(
                "margin: wins reads win probabilities, and so does label or a term; a loss has one of them"
            )
        if isinstance(self.margin, HomeMargin) and not isinstance(self.prior, ReferencePrior):
            raise ValueError("margin: home needs the prior reference")
        if isinstance(self.prior, NoPrior):
            for what, reads in (("kl", self.kl > 0), ("calibration", self.calibration is not None)):
                if reads:
                    raise ValueError(f"prior: none, but {what} reads the reference policy")
        return self

    @model_validator(mode="after")
    def _every_part_is_read(self) -> "Formula":
        if self.head is not None:
            unread = self._set(*OF_PAIRS, "margin", "label", "unscale")
            if self.weights.kind in WEIGHTS_OF_PAIRS:
                unread.append("weights")
            if isinstance(self.prior, HarmonicPrior | LearnedPrior):
                unread.append("prior")
            if isinstance(self.head, TokenAdvantageHead):
                # A token's score is compared with its own advantage.
                unread += self._set("weights", "kl")
                if self.head.form == "square" and isinstance(self.prior, NoPrior):
                    raise ValueError("prior: none, but the square of head apa_token needs log-ratios: use reference")
            if unread:
                raise ValueError(
                    f"{', '.join(unread)}: not read by a loss over K responses (head: {self.head.kind}); leave it out"
                )
        elif self.link.kind == "none" and (unread := self._set("margin", "label")):
            raise ValueError(f"{', '.join(unread)}: read by link alone, and this loss has no link")
        if self.head is None and not self.links and (unread := self._set(*OF_PREFERENCES)):
            raise ValueError(f"{', '.join(unread)}: not read by a loss without link, terms or head; leave it out")
        for name, read, where in (
            ("pair_weight_cap", self.pair_weight == "policy", "pair_weight: policy"),
            ("length_power", self.aggregate == "power", "aggregate: power"),
        ):
            if not read and self._set(name):
                raise ValueError(f"{name}: only read with {where}")
        return self

    def _require_plain_scores(self) -> None:
        """Refuse what the sorted margin's scores, policy minus reference, do not have."""
        plain = isinstance(self.prior, ReferencePrior) and self.prior.weight == 1
        set_ = self._set("exponent", "weights", "kl", "shape", "scale", "dispersion", "terms", "pair_weight")
        if set_ or not plain or self.label.kind == "rewards" or self.aggregate == "power":
            name = set_[0] if set_ else "prior" if not plain else "aggregate" if self.aggregate == "power" else "label"
            raise ValueError(
                f"{name}: the margin sorted compares plain log-ratios over the batch; allowed with it: prior "
                "reference, aggregate sum or mean, label data or smoothed, and none of exponent, weights, kl, "
                "shape, scale, dispersion, terms, pair_weight"
            )

    def _set(self, *names: str) -> list[str]:
        """Names of the fields that are not at their defaults."""
        return [name for name in names if self.__dict__[name] != type(self).model_fields[name].default]
