"""Panels of the training steps. A panel without numbers is left out."""

import math
from collections.abc import Callable, Iterator, Sequence

from flows.report.facts import RoundFacts
from flows.report.html.drawing.figures import Line, lines_figure
from flows.report.html.panel import Panel, Runs, run_label
from flows.report.html.run_facts import RunFacts
from pipeline.training.step_log import StepCurve, StepReport, part_curves
from pipeline.training.watch.image_errors import chosen_error, rejected_error

BOTH_MAY_FALL = (
    "A preference loss fixes only the difference of the two log-probs, so both may fall while the margin grows: "
    "probability moves to responses that are in no pair, and what chosen and rejected ones have in common is pushed "
    "down with the rejected ones. This does no harm while reward and win rate on held-out prompts rise; if these "
    "fall too, a likelihood term (loss.nll), a larger β, a smaller learning rate, or a loss that holds the chosen "
    "response in place (dpop, cal_dpo, apo_zero) helps."
)

ERRORS_MAY_GROW = (
    "The loss fixes only the difference of the two sides, so both errors may grow while it falls. Up to log 1.3 = 0.26 "
    "for chosen images is usual; above log 1.5 = 0.41 the policy unlearns what it should prefer, although pairs are in "
    "the right order: a larger β, a smaller learning rate, more pairs or a fixed reference helps."
)

TARGETS_FAR_OFF = (
    "Targets far above the log-ratios are not reached within a round: their size then acts as a step size (head.eta)."
)


def training_panels(runs: Runs) -> list[Panel]:
    """Panels of the steps of all rounds, one after the other."""
    panels = [
        _of_errors(runs)
        or _of_steps(
            runs,
            "Change of log-probs",
            "nats per token, from the reference",
            [
                ("chosen", lambda step: step.chosen_change_per_token),
                ("rejected", lambda step: step.rejected_change_per_token),
            ],
            BOTH_MAY_FALL,
            level=0.0,
        )
        or _of_steps(
            runs,
            "Log-probs",
            "nats per token",
            [
                ("chosen", lambda step: step.chosen_logp_per_token),
                ("rejected", lambda step: step.rejected_logp_per_token),
            ],
            BOTH_MAY_FALL,
        ),
        _of_steps(runs, "Loss", "mean over pairs", [("loss", lambda step: step.loss)]),
        _of_parts(runs),
        _of_steps(
            runs,
            "Size of log-ratios and targets",
            "nats per token",
            [("log-ratio", lambda step: step.ratio_per_token), ("target", lambda step: step.target_per_token)],
            TARGETS_FAR_OFF,
        ),
        _of_steps(runs, "Margin", "β × difference of scores", [("margin", lambda step: step.margin)], level=0.0),
        _of_steps(
            runs,
            "Pairs in the right order",
            "share of the batch",
            [("accuracy", lambda step: step.accuracy)],
            y_format=".0%",
            level=0.5,
        ),
        _of_steps(
            runs,
            "Busiest expert",
            "load over the mean, in the worst layer",
            [("load", lambda step: step.expert_imbalance)],
            level=1.0,
        ),
        _of_steps(runs, "Router loss", "before its coefficient", [("loss", lambda step: step.router_aux_loss)]),
        _of_steps(runs, "Gradient norm", "before clipping", [("norm", lambda step: step.grad_norm)]),
        _of_steps(runs, "Learning rate", "", [("rate", lambda step: step.learning_rate)], y_format=".1e"),
    ]
    return [panel for panel in panels if panel is not None]


def _of_errors(runs: Runs) -> Panel | None:
    """Growth of an image policy's errors over the reference's; None for texts, whose scores are log-probs."""
    if not all(run.settings.get("modality") == "image" for run in runs):
        return None
    sides: list[StepCurve] = [("chosen", _log_of(chosen_error)), ("rejected", _log_of(rejected_error))]
    return _of_steps(
        runs, "Denoising errors", "log of the policy's minus log of the reference's", sides, ERRORS_MAY_GROW, level=0.0
    )


def _log_of(read: Callable[[StepReport], float | None]) -> Callable[[StepReport], float | None]:
    def log(step: StepReport) -> float | None:
        value = read(step)
        return None if value is None or value <= 0 else math.log(value)

    return log


def _of_parts(runs: Runs) -> Panel | None:
    """The parts of weighted sums of losses, one line for each."""
    curves = part_curves(step for run in runs for facts in run.trained for step in _steps(facts))
    return _of_steps(runs, "Parts of the loss", "mean over pairs, before each part's weight", curves)


def _of_steps(
    runs: Runs,
    title: str,
    unit: str,
    curves: Sequence[StepCurve],
    note: str = "",
    y_format: str = "",
    level: float | None = None,
) -> Panel | None:
    lines: list[Line] = []
    several = len(runs) > 1
    for number, run in enumerate(runs):
        steps = [step for facts in run.trained for step in _steps(facts)]
        for place, (label, read) in enumerate(curves):
            known = [(float(index), value) for index, step in enumerate(steps, 1) if (value := read(step)) is not None]
            if len(known) < 2:
                continue
            x, y = zip(*known, strict=True)
            lines.append(
                Line(run_label(run, label, several, len(curves) > 1), x, y, number if several else place, dash=place)
            )
    if not lines:
        return None
    bounds = list(_starts(runs[0])) if not several else []
    figure = lines_figure(
        lines,
        x_title="step",
        y_format=y_format,
        marks=False,
        level=level,
        bounds=bounds[1:] if len(bounds) <= 20 else (),
    )
    return Panel(title, unit, figure, note)


def _steps(facts: RoundFacts) -> tuple[StepReport, ...]:
    return () if facts.training is None else facts.training.steps


def _starts(run: RunFacts) -> Iterator[float]:
    """Where each round's steps begin."""
    done = 0
    for facts in run.trained:
        yield done + 0.5
        done += len(_steps(facts))
