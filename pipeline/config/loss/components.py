"""The settings of priors, token weights and shapes of a loss. Torch-free.

A component without settings of its own may be written as its ``kind`` alone: ``link: logistic``.
The file of the same name in pipeline/losses/ computes each one.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Closed


def _by_name(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


BY_NAME = BeforeValidator(_by_name)

# ---------------------------------------------------------------- prior: what log-probabilities are measured against


class NoPrior(Closed):
    """ζ = 1: the loss reads the policy alone."""

    kind: Literal["none"] = "none"


class ReferencePrior(Closed):
    """log ζ = v log π_ref."""

    kind: Literal["reference"] = "reference"
    weight: float = Field(1.0, ge=0, le=1, description="v; below 1 the reference counts for less")


class LengthPrior(Closed):
    """log ζ = log π_ref − α |y|: with α < 0, longer responses are likelier to begin with."""

    kind: Literal["length"] = "length"
    alpha: float = Field(0.1, description="nats per token")


class MixturePrior(Closed):
    """Mixture of several references: arithmetic, log Σ_k v_k π_k(y), or geometric, Σ_k v_k log π_k(y)."""

    kind: Literal["mixture"] = "mixture"
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    weights: tuple[float, ...] = Field((0.5, 0.5), min_length=2, description="v, one a reference")

    @model_validator(mode="after")
    def _arithmetic_weights_are_positive(self) -> "MixturePrior":
        if self.mean == "arithmetic" and min(self.weights) <= 0:
            raise ValueError(f"weights: {self.weights}: those of an arithmetic mixture must be above 0")
        return self


class HarmonicPrior(Closed):
    """Weighted harmonic mean of several references, clipped towards the first (MRPO)."""

    kind: Literal["harmonic"] = "harmonic"
    weights: tuple[float, ...] | Literal["adaptive"] = Field(
        "adaptive", description="adaptive: by how sure each reference is of the pair"
    )
    clip: float | None = Field(0.1, ge=0, lt=1, description="η of the trust region around the first; null: none")

    @model_validator(mode="after")
    def _weights_are_positive(self) -> "HarmonicPrior":
        if self.weights != "adaptive" and (not self.weights or min(self.weights) <= 0):
            raise ValueError(f"weights: {self.weights}: adaptive, or numbers above 0")
        return self


class ExtrapolatedPrior(Closed):
    """log ζ = (1 + α) log π_t − α log π_(t−1), of the newest checkpoint and the one before."""

    kind: Literal["extrapolated"] = "extrapolated"
    alpha: float = Field(0.3, ge=0)


class LearnedPrior(Closed):
    """log ζ = log π_ref + a trained head on the reference's hidden states, which starts at 0."""

    kind: Literal["learned"] = "learned"
    penalty: float = Field(0.01, ge=0, description="weight of the mean square of what the head adds")
    head_learning_rate: float = Field(1e-4, gt=0, description="of the head, which starts untrained")


class GivenPrior(Closed):
    """log ζ from the data: the columns chosen_prior and rejected_prior, nats a response."""

    kind: Literal["given"] = "given"


Prior = Annotated[
    NoPrior
    | ReferencePrior
    | LengthPrior
    | MixturePrior
    | HarmonicPrior
    | ExtrapolatedPrior
    | LearnedPrior
    | GivenPrior,
    Field(discriminator="kind"),
    BY_NAME,
]

# ---------------------------------------------------------------- weights: one for each token


class EqualWeights(Closed):
    """w = 1."""

    kind: Literal["equal"] = "equal"


class DecayWeights(Closed):
    """w_t = γ^t (D2PO)."""

    kind: Literal["decay"] = "decay"
    gamma: float = Field(0.98, gt=0, le=1)
    first: Literal[0, 1] = Field(0, description="exponent of the first token: 0 in the paper, 1 in its code")


class EditWeights(Closed):
    """w_t = 1 + edited_t min(1/π(y_t), δ) (BMC)."""

    kind: Literal["edits"] = "edits"
    delta: float = Field(2.0, ge=0)


class SubsetWeights(Closed):
    """1 for all tokens of the shorter side and for as many random ones of the longer, else 0 (SamPO)."""

    kind: Literal["subset"] = "subset"
    keep_end: bool = Field(False, description="always keep the last token of both sides")


class TailWeights(Closed):
    """α for tokens beyond the length of the shorter side (LD-DPO)."""

    kind: Literal["tail"] = "tail"
    alpha: float = Field(0.5, ge=0, le=1)


class GivenWeights(Closed):
    """From two contrasting models (TIS-DPO): e^(± mu · clamp(log p⁺ − log p⁻)); from a caller: used as they are."""

    kind: Literal["given"] = "given"
    mu: float = Field(1.0, ge=0, description="sharpness of the contrast")
    low: float = Field(-0.5, description="of the clamp, nats")
    high: float = Field(1.5, description="of the clamp, nats")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "GivenWeights":
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is above high {self.high}")
        return self


class LearnedWeights(Closed):
    """Masks ≥ 0 that heads on the reference's hidden states learn (SparsePO)."""

    kind: Literal["learned"] = "learned"
    masks: Literal["common", "independent"] = Field(
        "common", description="one mask for log-ratio and KL, or one for each"
    )
    l1_ratio: float = Field(0.0, ge=0, description="weight of the mean of the log-ratio's mask")
    l1_kl: float = Field(0.0, ge=0, description="weight of the mean of the KL's mask")
    dropout: float = Field(0.01, ge=0, lt=1, description="of the heads")
    weight_decay: float = Field(0.01, ge=0, description="of the heads")
    head_learning_rate: float = Field(1e-4, gt=0, description="of the heads, which start untrained")


class ActivationWeights(Closed):
    """A mask computed from the size of the reference's activations, not learned (MaPO)."""

    kind: Literal["activation"] = "activation"


Weights = Annotated[
    EqualWeights
    | DecayWeights
    | EditWeights
    | SubsetWeights
    | TailWeights
    | GivenWeights
    | LearnedWeights
    | ActivationWeights,
    Field(discriminator="kind"),
    BY_NAME,
]

# ---------------------------------------------------------------- shape: of a score


class IdentityShape(Closed):
    """T(s) = s."""

    kind: Literal["identity"] = "identity"


class DivergenceShape(Closed):
    """T(s) = f′(e^s) of an f-divergence."""

    kind: Literal["divergence"] = "divergence"
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    alpha: float = Field(0.5, gt=0, lt=1, description="of the alpha divergence")


class AlphaShape(Closed):
    """T(s) = (1 − e^(−αs)) / α."""

    kind: Literal["alpha"] = "alpha"
    alpha: float = Field(0.25, description="0 gives T(s) = s")


class PlainShape(Closed):
    """log_odds: s − log(1 − e^s). exp: e^s. relu_rejected: max(0, s) of the rejected response (MinorDPO).

    bernoulli: n/(e^n − 1) of n = −s, between 0 and 1 (margin-aware preference optimization).
    """

    kind: Literal["log_odds", "exp", "relu_rejected", "bernoulli"]


class PenaltyShape(Closed):
    """T(s) = s − λ max(0, −s) of the chosen response (DPOP)."""

    kind: Literal["penalty_chosen"] = "penalty_chosen"
    penalty: float = Field(50.0, ge=0, description="λ")


Shape = Annotated[
    IdentityShape | DivergenceShape | AlphaShape | PlainShape | PenaltyShape, Field(discriminator="kind"), BY_NAME
]
