"""Denoising errors of an image policy, as shares of the reference's, from the log of its steps. Torch-free.

A score is minus a positive factor times the mean squared error, on the same draws under both, so their quotient is that
of the errors. Good rounds end with a winner's error of up to 1.3 times the reference's, after a sharp start up to 1.53;
ones that collapse with 1.7 and more, while the loss goes on falling and pairs are in the right order.
"""

from pipeline.training.step_log import StepReport


def chosen_error(step: StepReport) -> float | None:
    """Return the error on chosen images over the reference's; None without a reference."""
    return _share(step.chosen_logp_per_token, step.chosen_change_per_token)


def rejected_error(step: StepReport) -> float | None:
    """Return the error on rejected images over the reference's; None without a reference."""
    return _share(step.rejected_logp_per_token, step.rejected_change_per_token)


def _share(score: float | None, change: float | None) -> float | None:
    if score is None or change is None or score - change >= 0:
        return None
    return score / (score - change)
