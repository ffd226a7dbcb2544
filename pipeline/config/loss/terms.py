"""Settings of the parts of a loss after the scores: links, labels, terms, list heads, regularisers. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Closed
from pipeline.config.loss.components import BY_NAME

# ---------------------------------------------------------------- link: from a margin to a loss

PlainLinkName = Literal[
    "none",
    "logistic",
    "ipo",
    "square",
    "squared_error",
    "exponential",
    "truncated_quadratic",
    "savage",
    "sigmoid",
    "linear",
    "cauchy",
    "reverse_kl",
]


class PlainLink(Closed):
    """A link without settings; ``none``: the loss has no preference term."""

    kind: PlainLinkName


class HingeLink(Closed):
    """f(z) = max(0, δ − z)."""

    kind: Literal["hinge"] = "hinge"
    delta: float = Field(1.0, gt=0)


class FocalLink(Closed):
    """f(z) = −σ(z)^γ log σ(z)."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(0.05, ge=0)


class DiscoLink(Closed):
    """f(z) = (1 − s) log(1 + e^−z) + s e^−z, s = σ(z/τ)."""

    kind: Literal["disco"] = "disco"
    tau: float = Field(0.05, gt=0)


class MallowsPhiLink(Closed):
    """f(z) = −log g_φ(z) with φ = e^−d of the pair, made smooth where |z| is below ``smoothing``."""

    kind: Literal["mallows_phi"] = "mallows_phi"
    smoothing: float = Field(1.0, gt=0)


class RaoKupperLink(Closed):
    """Rao-Kupper's model of comparisons with ties, the negative log-likelihood; a label of exactly ½ is a tie."""

    kind: Literal["rao_kupper"] = "rao_kupper"
    eta: float = Field(0.5, gt=0, description="η = log θ: a response must be this much better to win half the time")


Link = Annotated[
    PlainLink | HingeLink | FocalLink | DiscoLink | MallowsPhiLink | RaoKupperLink,
    Field(discriminator="kind"),
    BY_NAME,
]

# ---------------------------------------------------------------- label: how sure it is that chosen is better


class DataLabel(Closed):
    """p from the data; 1 where the data has none."""

    kind: Literal["data"] = "data"


class SmoothLabel(Closed):
    """smoothed: p = 1 − ε. robust: p = (1 − ε) / (1 − 2ε), above 1."""

    kind: Literal["smoothed", "robust"]
    epsilon: float = Field(0.1, ge=0, lt=0.5, description="probability that a label is flipped")


class RewardLabel(Closed):
    """p = σ(η (r_w − r_l))."""

    kind: Literal["rewards"] = "rewards"
    eta: float = Field(1.0, gt=0)
    entropy: bool = Field(False, description="subtract the entropy of p, so that the loss is a KL divergence")


class WinLabel(Closed):
    """p = the probability that chosen wins."""

    kind: Literal["wins"] = "wins"


Label = Annotated[DataLabel | SmoothLabel | RewardLabel | WinLabel, Field(discriminator="kind"), BY_NAME]

# ---------------------------------------------------------------- terms: (c, a, b, m, f)


class Term(Closed):
    """c · f(a R_w + b R_l − m)."""

    coefficient: float = Field(1.0, description="c")
    chosen: float = Field(0.0, description="a")
    rejected: float = Field(0.0, description="b")
    target: float | Literal["win", "baseline", "batch_mean", "running_mean"] = Field(
        0.0,
        description="m: a number; win: P(y wins) − ½; baseline: β z0 of KTO; batch_mean: β z0 of Diffusion-KTO; "
        "running_mean: δ of BCO; the last three times a + b",
    )
    link: Link


# ---------------------------------------------------------------- list heads: K responses at once


class ListHead(Closed):
    """square_loo, cross_entropy, reverse_kl: RPO's three divergences over K responses. nca: its list form."""

    kind: Literal["square_loo", "cross_entropy", "reverse_kl", "nca"]
    eta: float = Field(1.0, gt=0, description="scale of the rewards")


class RankHead(Closed):
    """RRHF: Σ over pairs in the wrong order of the difference of scores."""

    kind: Literal["rank"] = "rank"


class AdvantageHead(Closed):
    """APA over K responses: mean_k (R_k − η (r_k − V_k))²."""

    kind: Literal["apa"] = "apa"
    eta: float = Field(1.0, gt=0, description="scale of the rewards, 1/λ of the paper")
    value: Literal["leave_one_out", "mean", "soft"] = Field(
        "leave_one_out",
        description="V: the mean of the prompt's other rewards, of all of them, or (β/η) log mean e^(ηr/β)",
    )
    deviation: Literal["none", "round"] = Field(
        "none", description="what a run divides rewards by: 1, or their standard deviation over the round's responses"
    )


class TokenAdvantageHead(Closed):
    """APA token by token: the mean over k of Agg_t (β h_t − η A_t)² + v ½ (V_t − G_t)².

    A: advantages of a value head's V, estimated once a round (GAE) and whitened over its tokens; G: returns.
    """

    kind: Literal["apa_token"] = "apa_token"
    form: Literal["square", "exponential"] = Field(
        "square", description="exponential: −e^(η A_t) β h_t in place of the square"
    )
    eta: float = Field(10.0, gt=0, description="scale of the advantages, 1/λ of the paper")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of a token")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="of the advantages: 1: the whole return minus V, 0: one token"
    )
    value_weight: float = Field(1.0, ge=0, description="v, of the value's fit, which trains the value head alone")
    head_learning_rate: float = Field(1e-4, gt=0, description="of the value head, which starts at 0")
    deviation: Literal["none", "round"] = Field(
        "none", description="what a run divides rewards by: 1, or their standard deviation over the round's responses"
    )


HeadSettings = Annotated[ListHead | RankHead | AdvantageHead | TokenAdvantageHead, Field(discriminator="kind"), BY_NAME]

# ---------------------------------------------------------------- scale and dispersion


class BatchScale(Closed):
    """β (1 + α (mean of the batch's log-ratio differences − their running mean)), with outliers dropped (β-DPO)."""

    kind: Literal["batch"] = "batch"
    alpha: float = Field(0.6, ge=0)
    drop: float = Field(0.2, ge=0, lt=1, description="share of the pairs that are left out")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the running mean and deviation")


class EntropyDispersion(Closed):
    """d = −φ* log of the reference's normalised entropy over the pair (MallowsPO)."""

    kind: Literal["entropy"] = "entropy"
    scale: float | Literal["mean"] = Field(
        "mean", description="φ*; mean: the value at which d averages 1 over the round's pairs"
    )
    vocab_size: int | None = Field(
        None,
        ge=2,
        description="if a caller gives entropies, not d: the vocabulary's size; null: already divided by log V",
    )


# ---------------------------------------------------------------- regularisers


class Calibration(Closed):
    """sign · α β^n · log π(y)/π_ref(y) of a calibration response (VPO, XPO)."""

    sign: Literal[-1, 1] = Field(description="1: optimism, online; −1: pessimism, offline")
    alpha: float = Field(0.01, ge=0)
    source: Literal["samples", "chosen"] = Field("samples", description="samples: drawn from the reference policy")
    beta_scaled: bool = Field(True, description="whether α is multiplied by β")
    ratio: bool = Field(True, description="log π/π_ref; false: log π alone, with the same gradient")


class Advantage(Closed):
    """Likelihood weighted by e^((r − V)/τ), and the fit of V (HPO)."""

    weight: float = Field(0.1, ge=0, description="λ")
    tau: float = Field(1.0, gt=0, description="temperature, in units of the reward")
    expectile: float = Field(0.5, gt=0, lt=1, description="of the value's fit; 0.5 is the mean square")
    clip: float = Field(20.0, gt=0, description="largest weight")
    value_weight: float = Field(1.0, ge=0, description="of the value's fit, which trains the value head alone")
    head_learning_rate: float = Field(1e-4, gt=0, description="of the value head, which starts untrained")


class Adversary(Closed):
    """Latent adversarial regulariser: two critics on hidden states (GANPO)."""

    weight: float = Field(1.0, ge=0, description="λ")
    hidden_size: int = Field(512, ge=32, description="of the critics")
    layers: int = Field(2, ge=1)
    heads: int = Field(8, ge=1)
    learning_rate_ratio: float = Field(0.5, gt=0, description="the critics' learning rate over the policy's")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the running means of the critics' scores")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "Adversary":
        if self.hidden_size % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide hidden_size {self.hidden_size}")
        return self
