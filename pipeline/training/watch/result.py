"""What a training run leads to, besides its weights. Torch-free."""

from dataclasses import asdict, dataclass

from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.step_log import StepReport
from pipeline.training.watch.alarms import Alarm
from pipeline.training.watch.held_out import HeldOutReport

AVERAGED = (
    "loss",
    "grad_norm",
    "margin",
    "accuracy",
    "chosen_logp_per_token",
    "rejected_logp_per_token",
    "chosen_change_per_token",
    "rejected_change_per_token",
    "ratio_per_token",
    "target_per_token",
    "router_aux_loss",
    "expert_imbalance",
)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a finished training run.

    Attributes:
        steps: optimiser steps, including those before a resume.
        tokens: read by forward passes, without padding.
        history: one report per step.
        metrics: ``loss``, ``margin``, ``accuracy``, ``chosen_logp_per_token`` and so on as means over
            the last tenth of the steps (``first_loss``: the first step's), and totals: ``tokens``,
            ``response_tokens``, ``seconds`` inside steps, ``tokens_per_second``, ``padding``.
        padded_because: why each row had its own copy of the prompt and padding; None: prompts were shared.
        passes: tokens of a pass over the data.
        compilations: graphs that were compiled meanwhile; only attention on CUDA is compiled, twice a run.
        kept_step: the weights are those after this many steps; 0: those that training started from, and the model that
            was trained must not be used.
        ended_because: why it ended before its last step; None: it did not.
        alarms: in the order in which they were raised.
        evaluations: on held-out pairs.
    """

    steps: int
    tokens: int
    history: tuple[StepReport, ...]
    metrics: dict[str, float]
    padded_because: str | None = None
    passes: PassTokens | None = None
    compilations: int = 0
    kept_step: int = 0
    ended_because: str | None = None
    alarms: tuple[Alarm, ...] = ()
    evaluations: tuple[HeldOutReport, ...] = ()


def summarise_steps(history: tuple[StepReport, ...]) -> TrainResult:
    """Return the result of a run from the reports of its steps (at least one)."""
    last = history[-max(1, len(history) // 10) :]
    metrics: dict[str, float] = {"first_loss": history[0].loss}
    for name in AVERAGED:
        values = [value for value in (asdict(report)[name] for report in last) if value is not None]
        if values:
            metrics[name] = sum(values) / len(values)
    tokens, seconds = sum(r.tokens for r in history), sum(r.seconds for r in history)
    positions = sum(r.tokens / (1 - r.padding) for r in history)
    metrics |= {
        "tokens": tokens,
        "response_tokens": sum(r.response_tokens for r in history),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "padding": 1 - tokens / positions,
    }
    return TrainResult(len(history), tokens, history, metrics, kept_step=len(history))
