from math import atan, e, log, pi
from typing import get_args

import pytest
import torch

from flows.report.link_plot import Curve, curves, draw_links
from pipeline.config.loss.terms import PlainLinkName

# f(0) and f′(0), by hand.
AT_ZERO = {
    "logistic": (log(2), -0.5),
    "ipo": (0.25, -1.0),
    "square": (1.0, -2.0),
    "squared_error": (0.0, 0.0),
    "exponential": (1.0, -1.0),
    "truncated_quadratic": (1.0, -2.0),
    "savage": (0.25, -0.25),
    "sigmoid": (0.5, -0.25),
    "linear": (0.0, -1.0),
    "cauchy": (log(2), -2 / pi),
    "hinge, δ = 1": (1.0, -1.0),
    "reverse_kl, p = 0.9": (0.5 * log(0.25 / 0.09), -0.25 * log(9)),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Curve]:
    return {curve.name: curve for curve in curves(-2.0, 2.0, points=5)}


@pytest.mark.parametrize("name", AT_ZERO)
def test_values_and_slopes_at_zero(name: str, drawn: dict[str, Curve]) -> None:
    curve = drawn[name]
    assert (curve.value[2].item(), curve.slope[2].item()) == pytest.approx(AT_ZERO[name], abs=1e-12)


def test_values_and_slopes_away_from_zero(drawn: dict[str, Curve]) -> None:
    assert drawn["exponential"].value.tolist() == pytest.approx([e**2, e, 1, 1 / e, e**-2])
    assert drawn["truncated_quadratic"].slope.tolist() == [-6, -4, -2, 0, 0]
    assert drawn["cauchy"].value[3].item() == pytest.approx(-log(0.5 + atan(1) / pi))


def test_every_link_is_drawn(drawn: dict[str, Curve]) -> None:
    kinds = {name.partition(",")[0] for name in drawn}
    assert kinds == set(get_args(PlainLinkName)) - {"none"} | {"hinge", "focal", "disco", "mallows_phi", "rao_kupper"}
    assert all(torch.isfinite(torch.cat([curve.value, curve.slope])).all() for curve in curves())


def test_the_picture_names_each_link_and_both_axes() -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        picture = draw_links("svg").decode()
    assert all(curve.name in picture for curve in curves())
    assert all(label in picture for label in ("margin z", "loss f(z)", "slope f′(z)"))
