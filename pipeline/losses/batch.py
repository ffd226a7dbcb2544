"""What a loss is computed from: log-probabilities of the two sides of a batch of pairs."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One response of each pair, token by token.

    Attributes:
        policy: [B, T] natural-log probabilities of the tokens under the policy that is trained.
        mask: [B, T] bool, true at response tokens; lengths come from it alone. What stands at other
            positions is never read.
        reference: [B, T] the same under the reference policy, or None. Carries no gradient.
    """

    policy: Tensor
    mask: Tensor
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where shapes differ or the mask is not bool."""
        if self.policy.ndim != 2 or self.mask.shape != self.policy.shape:
            raise ValueError(
                f"policy {tuple(self.policy.shape)} and mask {tuple(self.mask.shape)}: both must be [B, T]"
            )
        if self.mask.is_floating_point() or self.mask.is_complex():
            raise ValueError(f"mask: {self.mask.dtype}; must be bool or integer")
        if self.reference is not None and self.reference.shape != self.policy.shape:
            raise ValueError(
                f"reference {tuple(self.reference.shape)}: must be [B, T] like policy {tuple(self.policy.shape)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """B pairs; ``rejected`` is None for a loss that reads one response only.

    Attributes:
        chosen: the preferred responses. The two sides may differ in T.
        rejected: the other ones.
        soft_label: [B] probability p that ``chosen`` is the better one; None: 1.
    """

    chosen: Side
    rejected: Side | None = None
    soft_label: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where the parts do not hold the same number of pairs."""
        pairs = self.chosen.policy.shape[0]
        if self.rejected is not None and self.rejected.policy.shape[0] != pairs:
            raise ValueError(f"{pairs} chosen and {self.rejected.policy.shape[0]} rejected responses")
        if self.soft_label is not None and self.soft_label.shape != (pairs,):
            raise ValueError(f"soft_label {tuple(self.soft_label.shape)}: must be [B] = ({pairs},)")
