"""How a link becomes a preference term under labels that may be wrong."""

from torch import Tensor

from pipeline.losses.links import Link


def preference_term(z: Tensor, link: Link, soft_label: Tensor | None) -> Tensor:
    """p f(z) + (1 − p) f(−z), [B].

    Args:
        z: [B] margins.
        link: f.
        soft_label: [B] p, the probability that the chosen response is the better one; None: 1.
            Values above 1 are legal (robust DPO, arXiv:2403.00409).
    """
    if soft_label is None:
        return link(z)
    p = soft_label.to(z.dtype)
    return p * link(z) + (1 - p) * link(-z)
