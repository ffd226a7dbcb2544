"""A plot of the links: f(z) and its slope f′(z)."""

from dataclasses import dataclass
from io import BytesIO
from typing import get_args

import torch
from torch import Tensor

from pipeline.config.loss.terms import (
    DiscoLink,
    FocalLink,
    HingeLink,
    MallowsPhiLink,
    PlainLink,
    PlainLinkName,
    RaoKupperLink,
)
from pipeline.config.loss.terms import Link as LinkSettings
from pipeline.losses.links import make_link

DISPERSION = 1.0  # the mean over a round
LABEL = 0.9  # for the link that compares with a label
_COLOURS = 10  # colours in matplotlib's default cycle


@dataclass(frozen=True, slots=True)
class Curve:
    """A link over margins ``z``: values and slopes, all [N] float64."""

    name: str
    z: Tensor
    value: Tensor
    slope: Tensor


def curves(low: float = -4.0, high: float = 4.0, points: int = 801) -> list[Curve]:
    """Every link with its usual settings over ``points`` margins from ``low`` to ``high``."""
    plain = [PlainLink(kind=kind) for kind in get_args(PlainLinkName) if kind != "none"]
    links: list[LinkSettings] = [*plain, HingeLink(), FocalLink(), DiscoLink(), MallowsPhiLink(), RaoKupperLink()]
    return [_curve(link, torch.linspace(low, high, points, dtype=torch.float64)) for link in links]


def _curve(link: LinkSettings, z: Tensor) -> Curve:
    z = z.requires_grad_()
    dispersion = torch.full_like(z.detach(), DISPERSION)
    value = make_link(link, dispersion=dispersion, label_logit=torch.full_like(z.detach(), LABEL).logit())(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return Curve(_named(link), z.detach(), value.detach(), slope)


def _named(link: LinkSettings) -> str:
    match link:
        case HingeLink():
            return f"hinge, δ = {link.delta:g}"
        case FocalLink():
            return f"focal, γ = {link.gamma:g}"
        case DiscoLink():
            return f"disco, τ = {link.tau:g}"
        case MallowsPhiLink():
            return f"mallows_phi, d = {DISPERSION:g}"
        case RaoKupperLink():
            return f"rao_kupper, η = {link.eta:g}"
        case PlainLink(kind="reverse_kl"):
            return f"reverse_kl, p = {LABEL:g}"
        case PlainLink():
            return link.kind


def draw_links(form: str) -> bytes:
    """Return the plot as a file's content; ``form`` is a format that matplotlib writes (png, svg, pdf)."""
    # Loaded here: no other part of the package draws, and it takes a second.
    from matplotlib.figure import Figure

    drawn = curves()
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    values, slopes = figure.subplots(1, 2)
    for number, curve in enumerate(drawn):
        # Where two curves coincide, the later one, drawn on top, shows the earlier one in its gaps.
        style = ("-", "--")[number % 2] if number < _COLOURS else "-."
        look = {"color": f"C{number % _COLOURS}", "linestyle": style, "linewidth": 1.6}
        values.plot(curve.z, curve.value, label=curve.name, **look)
        slopes.plot(curve.z, curve.slope, **look)
    for axes, heading, limits in ((values, "loss f(z)", (-2.0, 6.0)), (slopes, "slope f′(z)", (-6.0, 2.0))):
        axes.set(xlabel="margin z", ylabel=heading, title=heading, xlim=(-4, 4), ylim=limits)
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    figure.legend(loc="outside right center", frameon=False)
    content = BytesIO()
    figure.savefig(content, format=form, dpi=150)
    return content.getvalue()
