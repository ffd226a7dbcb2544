"""Log of a round's training steps, one JSON line per step as it is made: ``steps.jsonl``. Torch-free."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from pipeline.errors import RunError
from pipeline.storage.atomic import json_line, write_text

# Means over a step's examples that are logged if they are known.
METRICS = (
    "margin",
    "accuracy",
    "chosen_logp_per_token",
    "rejected_logp_per_token",
    "chosen_change_per_token",
    "rejected_change_per_token",
    "ending_logp",
    "ratio_per_token",
    "target_per_token",
)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step; means over the examples of its global batch.

    Attributes:
        step: from 1; ``steps`` is the number of steps of the whole run.
        loss: mean loss per example.
        grad_norm: before clipping.
        margin: β times the difference of the two scores, None without a preference term; ``accuracy``
            is the share of pairs where it is above 0.
        chosen_logp_per_token: nats, mean over responses of the mean over tokens; likewise rejected. Of single
            responses, the desirable ones are chosen and the others rejected; None: the batch has none of them.
        tokens: read by forward passes in this step, without padding.
        response_tokens: those of them whose log-probability is in the loss.
        padding: share of the forward passes' positions without a token.
        tokens_per_second: ``tokens`` divided by the step's wall time.
        chosen_change_per_token: log-prob minus that under the (first) reference, averaged like the log-prob; None if
            the loss uses no reference; likewise rejected.
        ending_logp: log-prob of the end token of chosen responses, nats; None if none ends with one, or in groups.
        router_aux_loss: the loss that balances the experts of a mixture, before its coefficient; k if all are used
            alike and a token has k experts; None: it is not trained.
        expert_imbalance: the load of the busiest expert, divided by the mean, in the layer where this is worst.
        expert_shares: the share of each expert in the choices of all layers.
        ratio_per_token, target_per_token: mean size of tokens' log-ratios and of their targets, nats; None without any.
            Targets far above the log-ratios are not reached: their size then acts as a step size.
        parts: of a weighted sum of losses, the mean of each part before its weight; ``margin`` and the like are those
            of the first part that has them.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    margin: float | None
    accuracy: float | None
    chosen_logp_per_token: float | None
    rejected_logp_per_token: float | None
    tokens: int
    response_tokens: int
    padding: float
    seconds: float
    tokens_per_second: float
    chosen_change_per_token: float | None = None
    rejected_change_per_token: float | None = None
    ending_logp: float | None = None
    router_aux_loss: float | None = None
    expert_imbalance: float | None = None
    expert_shares: Sequence[float] | None = None
    parts: Mapping[str, float] | None = None
    ratio_per_token: float | None = None
    target_per_token: float | None = None


STEPS = "steps.jsonl"

# A label, and how the number that it names is read from a step.
StepCurve = tuple[str, Callable[[StepReport], float | None]]


def part_curves(steps: Iterable[StepReport]) -> list[StepCurve]:
    """Return one curve for each part of the weighted sums in ``steps``, in the order of their sums."""

    def read(name: str, step: StepReport) -> float | None:
        return None if step.parts is None else step.parts.get(name)

    names = dict.fromkeys(name for step in steps for name in step.parts or {})
    return [(name, partial(read, name)) for name in names]


class StepLog:
    """Log that writes each step at once. Training that resumes from a checkpoint repeats the steps after it,
    so the first repeated step drops the lines that a killed try left for them.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._begun = False

    def add(self, report: StepReport) -> None:
        """Write one step; steps come in order."""
        if not self._begun:
            self._keep(report.step - 1)
            self._begun = True
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json_line(asdict(report)))

    def finish(self, history: Iterable[StepReport]) -> None:
        """Replace the log by exactly ``history``."""
        write_text(self._file, "".join(json_line(asdict(report)) for report in history))

    def _keep(self, steps: int) -> None:
        if not self._file.exists():
            return
        with self._file.open("r+b") as lines:
            kept = sum(len(line) for line in islice(lines, steps))
            lines.seek(kept, os.SEEK_SET)
            lines.truncate()


def read_steps(file: Path) -> tuple[StepReport, ...]:
    """Return the steps in ``file`` without a last line cut by a kill. Raises ``RunError`` if it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        return tuple(StepReport(**json.loads(line)) for line in lines if line.endswith("\n"))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: not a readable list of steps ({error})") from None
