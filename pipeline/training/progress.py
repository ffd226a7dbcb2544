"""What the trainer reports of each optimiser step and of a whole run. Torch-free."""

from dataclasses import asdict, dataclass

AVERAGED = (
    "loss",
    "grad_norm",
    "margin",
    "accuracy",
    "chosen_logp_per_token",
    "rejected_logp_per_token",
    "chosen_change_per_token",
    "rejected_change_per_token",
)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step; means over the examples of its global batch.

    Attributes:
        step: from 1; ``steps`` is the number of the whole run.
        loss: mean loss an example.
        grad_norm: before clipping.
        margin: β times the difference of the two scores, None without a preference term; ``accuracy``
            is the share of pairs where it is above 0.
        chosen_logp_per_token: nats, mean over responses of the mean over tokens; likewise rejected.
        tokens: read by forward passes in this step, padding left out.
        response_tokens: those of them whose log-probability is in the loss.
        padding: share of the positions of the forward passes that held no token.
        tokens_per_second: ``tokens`` by the step's wall time.
        chosen_change_per_token: log-prob less that under the (first) reference, averaged as the log-prob; None where
            the loss measures against no reference; likewise rejected.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    margin: float | None
    accuracy: float | None
    chosen_logp_per_token: float
    rejected_logp_per_token: float | None
    tokens: int
    response_tokens: int
    padding: float
    seconds: float
    tokens_per_second: float
    chosen_change_per_token: float | None = None
    rejected_change_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run of training.

    Attributes:
        steps: optimiser steps, those before a resume included.
        tokens: read by forward passes, padding left out.
        history: one report a step.
        metrics: ``loss``, ``margin``, ``accuracy``, ``chosen_logp_per_token`` and so on as means over
            the last tenth of the steps (``first_loss``: the first step's), and totals: ``tokens``,
            ``response_tokens``, ``seconds`` inside steps, ``tokens_per_second``, ``padding``.
        padded_because: why each row had its own copy of the prompt and padding; None: prompts were shared.
    """

    steps: int
    tokens: int
    history: tuple[StepReport, ...]
    metrics: dict[str, float]
    padded_because: str | None = None


def summarise(history: tuple[StepReport, ...]) -> TrainResult:
    """The result of a run from the reports of its steps (at least one)."""
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
    return TrainResult(len(history), tokens, history, metrics)
