"""Reliability plot of a reward model: how often the predicted winner wins, by the model's confidence."""

from collections.abc import Sequence
from io import BytesIO

from reward_models.training.metrics import BINS, Bin


def draw_reliability(bins: Sequence[Bin], title: str, form: str = "svg") -> bytes:
    """Return the plot as file content; ``form`` is a matplotlib format (png, svg, pdf)."""
    # Imported here because it takes a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 0.5 / BINS
    middles = [(one.low + one.high) / 2 for one in bins]
    upper.bar(middles, [one.accuracy for one in bins], width=0.9 * width, label="how often it wins")
    upper.plot([0.5, 1], [0.5, 1], "k--", label="perfectly calibrated")
    upper.plot([one.confidence for one in bins], [one.accuracy for one in bins], "o", color="black", markersize=4)
    upper.set(ylim=(0, 1.05), ylabel="share of pairs that the predicted winner wins", title=title)
    upper.legend(loc="lower right")
    lower.bar(middles, [one.count for one in bins], width=0.9 * width, color="grey")
    lower.set(xlim=(0.5, 1), xlabel="predicted probability of the predicted winner", ylabel="pairs")
    buffer = BytesIO()
    figure.savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()
