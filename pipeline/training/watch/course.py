"""What a training run has gone through, whether it goes on, and which of its weights are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Composition
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import Alarms
from pipeline.errors import Paused
from pipeline.training.batches.examples import Example
from pipeline.training.checkpoint import WEIGHTS, kept_weights, newest_checkpoint
from pipeline.training.step_log import StepReport
from pipeline.training.steps import Steps
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import Alarm, Watch, standing
from pipeline.training.watch.held_out import HeldOutReport, best_report, gains_nothing, report_of


@dataclass(frozen=True)
class Watching:
    """How a training run is watched.

    Attributes:
        alarms: limits and actions of the rules.
        held_out: pairs that are evaluated before the first step, every ``every`` steps and after the last; 0: never.
        keep: the last weights, or those with the smallest log-loss on ``held_out``.
        patience: end after this many evaluations without a smaller log-loss; None: never.
        on_alarm, on_evaluation: called once for each, on the main process.
    """

    alarms: Alarms
    held_out: Sequence[Example] = ()
    every: int = 0
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    on_alarm: Callable[[Alarm], None] | None = None
    on_evaluation: Callable[[HeldOutReport], None] | None = None


class Course:
    """One training run's steps, evaluations and alarms, in every process alike."""

    def __init__(self, steps: Steps, loss: Composition, watching: Watching | None, folder: Path | None) -> None:
        """``folder``: of checkpoints; None: nothing is written. ``watching``: None: nothing is watched."""
        self.steps, self.loss, self.watching, self.folder = steps, loss, watching, folder
        self.history: list[StepReport] = []
        self.evaluations: list[HeldOutReport] = []
        self.ended_because: str | None = None
        limits = Alarms() if watching is None else watching.alarms
        self._watch = Watch(limits, steps.count, compares=not needs_of(loss).only_chosen)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms so far."""
        return () if self.watching is None else self._watch.alarms

    @property
    def ended(self) -> bool:
        """Whether no step is left, or none is wanted."""
        return len(self.history) >= self.steps.count or self.ended_because is not None

    def resume(self) -> None:
        """Take up the steps and evaluations before the newest checkpoint; at the start of a run, evaluate it."""
        history, evaluations = self.steps.resume(self.folder)
        waiting = list(evaluations)
        for report in (None, *history):
            done = 0
            if report is not None:
                self.history.append(report)
                self._watch.see(report)
                done = report.step
            while waiting and waiting[0].step <= done:
                self.evaluations.append(waiting.pop(0))
                self._watch.see_held_out(self.evaluations[-1])
        if not self.history and not self.evaluations:
            self._evaluate_if_due()

    def add(self, report: StepReport) -> None:
        """Take up a step: evaluate if it is due, raise alarms and do what they ask for.

        Raises ``Paused`` if an alarm pauses the run; a checkpoint is written first, and a run that resumes there goes
        on.
        """
        self.history.append(report)
        if self.watching is None:
            return
        raised = [*self._watch.see(report), *self._evaluate_if_due()]
        for alarm in raised:
            if self.watching.on_alarm is not None and self.steps.accelerator.is_main_process:
                self.watching.on_alarm(alarm)
        pausing = [alarm for alarm in raised if alarm.action == "pause"]
        stopping = [alarm for alarm in raised if alarm.action == "stop"]
        if stopping and not self.ended:
            self.ended_because = f"alarm {stopping[0].rule}"
        elif pausing and not self.ended:
            self.steps.checkpoint(self.folder, self.history, self.evaluations)
            raise Paused(f"{alarm_line(pausing[0])}\nThe same command goes on with this round's training.")

    def checkpoint(self) -> None:
        """Write a checkpoint of everything so far."""
        self.steps.checkpoint(self.folder, self.history, self.evaluations)

    def settle(self) -> int:
        """Go back to the weights to keep; return after how many steps they were reached.

        0: those that training started from; they are not restored here, since the caller has them on disk.
        """
        kept = self._kept_step()
        if kept not in (0, len(self.history)):
            assert self.folder is not None, "kept weights are files"
            file = kept_weights(self.folder, kept)
            place = newest_checkpoint(self.folder)
            self.steps.go_back(file if file.exists() or place is None else place / WEIGHTS)
        return kept

    def _kept_step(self) -> int:
        if self.watching is not None and self.watching.keep == "best" and self.evaluations:
            return best_report(self.evaluations).step
        if self.ended_because is None or not any(alarm.action == "stop" for alarm in self.alarms):
            return len(self.history)
        place = None if self.folder is None else newest_checkpoint(self.folder)
        step = 0 if place is None else int(place.name.removeprefix("step_"))
        return 0 if any(alarm.step <= step for alarm in standing(self.alarms, step)) else step

    def _evaluate_if_due(self) -> tuple[Alarm, ...]:
        """Evaluate if it is due, and keep the weights if they are the best; return the alarms that this raises."""
        watching, done = self.watching, len(self.history)
        if watching is None or not watching.every or not watching.held_out:
            return ()
        if done % watching.every and done < self.steps.count:
            return ()
        readings = self.steps.read(watching.held_out)
        report = report_of(done, readings, self.loss, self.evaluations[0] if self.evaluations else None)
        self.evaluations.append(report)
        if watching.on_evaluation is not None and self.steps.accelerator.is_main_process:
            watching.on_evaluation(report)
        best = watching.keep == "best" and best_report(self.evaluations) is report
        if best and self.folder is not None and 0 < done < self.steps.count:
            self.steps.keep_weights(self.folder, done)
        if gains_nothing(self.evaluations, watching.patience) and done < self.steps.count:
            self.ended_because = f"{watching.patience} evaluations without a smaller log-loss on held-out pairs"
        return self._watch.see_held_out(report)
