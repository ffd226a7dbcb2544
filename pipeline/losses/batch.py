"""Inputs of a loss: token log-probabilities of the responses, and whatever else the loss declares that it needs."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One response of each pair, token by token. Only the fields that the loss ``needs`` must be given.

    Values where ``mask`` is false are never read. All fields except ``policy``, ``kl`` and the outputs of heads
    (``weights``, ``kl_weights``, ``prior``, ``token_value``) are treated as constant.

    Attributes:
        policy: [B, T] natural-log probabilities of the tokens under the trained policy.
        mask: [B, T] bool, true at response tokens; only it determines lengths.
        reference: [B, T] the same under the reference policy, [K, B, T] under K of them, or None.
        kl: [B, T] KL(π_ref ‖ π) over the whole vocabulary at each position, in nats.
        ref_entropy: [B, T] entropy of the reference over the whole vocabulary, in nats with the loss's
            ``dispersion.vocab_size``, else over log V.
        collision: [B, T] Σ_v π(v)² over the whole vocabulary.
        weights: [B, T] weight of each token (TIS-DPO's weights, SparsePO's and MaPO's mask).
        kl_weights: [B, T] weight of each token's KL, where it differs from ``weights`` (independent masks).
        edited: [B, T] bool, true at tokens that the other response does not share (BMC).
        prior: [B, T] log ζ of each token where it is given; for a learned prior, what it adds to the reference's.
        advantage: [B, T] how much better a token did than the value head expected (APA), whitened by whoever stores it.
        returns: [B, T] what the value head should have expected.
        token_value: [B, T] what it expects now; carries its gradient.
    """

    policy: Tensor
    mask: Tensor
    reference: Tensor | None = None
    kl: Tensor | None = None
    ref_entropy: Tensor | None = None
    collision: Tensor | None = None
    weights: Tensor | None = None
    kl_weights: Tensor | None = None
    edited: Tensor | None = None
    prior: Tensor | None = None
    advantage: Tensor | None = None
    returns: Tensor | None = None
    token_value: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where shapes differ or the mask is not bool."""
        if self.policy.ndim != 2 or self.mask.shape != self.policy.shape:
            raise ValueError(
                f"policy {tuple(self.policy.shape)} and mask {tuple(self.mask.shape)}: both must be [B, T]"
            )
        if self.mask.is_floating_point() or self.mask.is_complex():
            raise ValueError(f"mask: {self.mask.dtype}; must be bool or integer")
        for field in fields(self)[2:]:
            value: Tensor | None = self.__getattribute__(field.name)
            if value is None:
                continue
            shape = value.shape[1:] if field.name == "reference" and value.ndim == 3 else value.shape
            if shape != self.policy.shape:
                kind = "[B, T] or [K, B, T]" if field.name == "reference" else "[B, T]"
                raise ValueError(
                    f"{field.name} {tuple(value.shape)}: must be {kind} like policy {tuple(self.policy.shape)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """B pairs; ``rejected`` is None for a loss that reads only one response.

    Attributes:
        chosen: the preferred responses. The two sides may differ in T.
        rejected: the other ones.
        soft_label: [B] probability p that ``chosen`` is the better one; None: 1.
        reward_chosen, reward_rejected: [B] scores of a reward model.
        win_probability: [B] probability that ``chosen`` beats the policy's average answer (SPPO), or ``rejected``.
        win_probability_rejected: [B] the same for ``rejected``; None: 1 − ``win_probability``.
        dispersion: [B] d = −log φ(x) ≥ 0, large where people agree (MallowsPO).
        calibration: a response of the calibration policy to each prompt (VPO, XPO).
        value: [B] predicted reward of the prompt (HPO); carries the gradient of the value head.
        critic_chosen, critic_rejected: [B] a critic's score of the policy's hidden states minus its mean score of the
            reference's (GANPO); carry a gradient.
        seeds: [B] int64, seeds of the random draws for a pair (SamPO, β-DPO); None: 0 … B − 1.
    """

    chosen: Side
    rejected: Side | None = None
    soft_label: Tensor | None = None
    reward_chosen: Tensor | None = None
    reward_rejected: Tensor | None = None
    win_probability: Tensor | None = None
    win_probability_rejected: Tensor | None = None
    dispersion: Tensor | None = None
    calibration: Side | None = None
    value: Tensor | None = None
    critic_chosen: Tensor | None = None
    critic_rejected: Tensor | None = None
    seeds: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where the parts do not hold the same number of pairs."""
        pairs = self.chosen.policy.shape[0]
        if self.rejected is not None and self.rejected.policy.shape[0] != pairs:
            raise ValueError(f"{pairs} chosen and {self.rejected.policy.shape[0]} rejected responses")
        if self.calibration is not None and self.calibration.policy.shape[0] != pairs:
            raise ValueError(f"{pairs} chosen and {self.calibration.policy.shape[0]} calibration responses")
        for field in fields(self):
            value = self.__getattribute__(field.name)
            if isinstance(value, Tensor) and value.shape != (pairs,):
                raise ValueError(f"{field.name} {tuple(value.shape)}: must be [B] = ({pairs},)")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedBatch:
    """B single responses, each marked good or bad (KTO, BCO).

    Attributes:
        responses: one a row.
        desirable: [B] bool.
        mismatched: for each prompt, the response to another prompt, whose log-ratio estimates KL(π ‖ π_ref); None: 0.
        seeds: [B] int64, numbers that tell the responses of a global batch apart; None: 0 … B − 1.
    """

    responses: Side
    desirable: Tensor
    mismatched: Side | None = None
    seeds: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where the parts do not hold the same number of responses."""
        rows = self.responses.policy.shape[0]
        if self.desirable.shape != (rows,):
            raise ValueError(f"desirable {tuple(self.desirable.shape)}: must be [B] = ({rows},)")
        if self.mismatched is not None and self.mismatched.policy.shape[0] != rows:
            raise ValueError(f"{rows} responses and {self.mismatched.policy.shape[0]} mismatched ones")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """B prompts with K responses each.

    Attributes:
        responses: K sides, the k-th response of every prompt; they may differ in T.
        rewards: [B, K].
        present: [B, K] bool; false where a prompt has fewer than K responses. None: all are present.
    """

    responses: tuple[Side, ...]
    rewards: Tensor
    present: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than two responses, and where the parts do not fit each other."""
        if len(self.responses) < 2:
            raise ValueError(f"{len(self.responses)} response a prompt: a list loss compares at least 2")
        rows = {side.policy.shape[0] for side in self.responses}
        shape = (self.responses[0].policy.shape[0], len(self.responses))
        if len(rows) > 1 or self.rewards.shape != shape:
            raise ValueError(f"rewards {tuple(self.rewards.shape)} of {sorted(rows)} prompts: must be [B, K] = {shape}")
        if self.present is not None and self.present.shape != shape:
            raise ValueError(f"present {tuple(self.present.shape)}: must be [B, K] = {shape}")


Batch = PairBatch | UnpairedBatch | GroupBatch


def present_of(batch: GroupBatch) -> Tensor:
    """[B, K] bool, true where a response is present."""
    return torch.ones_like(batch.rewards, dtype=torch.bool) if batch.present is None else batch.present.bool()


def refuse_empty(batch: Batch) -> None:
    """Raise ValueError where a response has no tokens."""
    sides: dict[str, Side | None]
    present = None
    match batch:
        case PairBatch():
            sides = {"chosen": batch.chosen, "rejected": batch.rejected, "calibration": batch.calibration}
        case UnpairedBatch():
            sides = {"responses": batch.responses, "mismatched": batch.mismatched}
        case GroupBatch():
            sides = {f"responses[{k}]": side for k, side in enumerate(batch.responses)}
            present = present_of(batch)
    for index, (name, side) in enumerate(sides.items()):
        if side is None:
            continue
        without = side.mask.sum(-1) == 0
        empty = (without if present is None else without & present[:, index]).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{name}: no response tokens in row {', '.join(map(str, empty[:5]))} of the batch")


# e^30 is 1e13: far beyond values in training, and its square still fits a float32.
LARGEST_EXPONENT = 30.0


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens where ``mask`` is true: [B, T] -> [B]. Other positions may hold anything, NaN included."""
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where ``mask`` is true: [B, T] -> [B]."""
    return masked_sum(values, mask) / mask.sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; leave float32 and float64 as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


def constant(values: Tensor) -> Tensor:
    """``values`` in float32 or better, without their gradient."""
    return at_least_float32(values.detach())


def bounded_exp(x: Tensor) -> Tensor:
    """e^x, continued as its tangent from x = 30, so that value and gradient stay finite for any finite x.

    >>> bounded_exp(torch.tensor([0.0, 1e4])).isfinite().all()
    tensor(True)
    """
    low = x.clamp(max=LARGEST_EXPONENT)
    return low.exp() * (1 + (x - LARGEST_EXPONENT).clamp(min=0))


def mean_where(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of ``values`` [B] over the rows that ``rows`` [B] marks; 0 without any."""
    return values.masked_fill(~rows, 0).sum() / rows.sum().clamp(min=1)


def likelihoods(responses: Side) -> dict[str, Tensor]:
    """Log-prob, and its change where the reference's is known, per token: [B], constant; ``{}`` stands for the side."""
    changed = change(responses)
    found = {"{}_logp_per_token": masked_mean(constant(responses.policy), responses.mask)}
    return found if changed is None else {**found, "{}_change_per_token": changed}


def change(side: Side) -> Tensor | None:
    """Mean of log π(y_t) − log π_ref(y_t) over a response, [B], constant; uses the first of several references."""
    if side.reference is None:
        return None
    reference = side.reference if side.reference.ndim == 2 else side.reference[0]
    return masked_mean(constant(side.policy) - constant(reference), side.mask)
