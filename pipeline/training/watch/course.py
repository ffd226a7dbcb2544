"""What a training run has gone through, whether it goes on, and which of its weights are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config import Formula
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import Alarms
from pipeline.errors import Paused
from pipeline.training.batches.examples import Example
from pipeline.training.distributed.checkpoint import newest_checkpoint
from pipeline.training.step_log import StepReport
from pipeline.training.steps import Steps
from pipeline.training.trainee import Files
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import Alarm, Watch, standing
from pipeline.training.watch.held_out import HeldOutReport, best_report, furthest_report, gains_nothing, report_of
from pipeline.types.counts import number_of


@dataclass(frozen=True)
class Watching:
    """How a training run is watched.

    Attributes:
        alarms: limits and actions of the rules.
        held_out: pairs that are evaluated before the first step, every ``every`` steps and after the last; 0: never.
        keep: the last weights, or those with the smallest log-loss on ``held_out``.
        patience: end after this many evaluations without a smaller log-loss; None: never.
        on_alarm, on_evaluation: called once for each, on the main process.
        on_resume: called with those before the checkpoint where the run goes on, on the main process.
    """

    alarms: Alarms
    held_out: Sequence[Example] = ()
    every: int = 0
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    on_alarm: Callable[[Alarm], None] | None = None
    on_evaluation: Callable[[HeldOutReport], None] | None = None
    on_resume: Callable[[Sequence[Alarm], Sequence[HeldOutReport]], None] | None = None


class Course:
    """One training run's steps, evaluations and alarms, in every process alike."""

    def __init__(self, steps: Steps, loss: Formula, watching: Watching | None, files: Files) -> None:
        """``files``: where checkpoints are, and what the next run starts from; ``watching``: None: nothing is."""
        self.steps, self.loss, self.watching, self.folder = steps, loss, watching, files.checkpoints
        self._carries = files.kept.optimiser is not None
        # The step whose kept weights the newest checkpoint counts on.
        self._needed: int | None = None
        self.history: list[StepReport] = []
        self.evaluations: list[HeldOutReport] = []
        self.ended_because: str | None = None
        self._stopped: Alarm | None = None
        limits = Alarms() if watching is None else watching.alarms
        compares = not needs_of(loss).only_chosen
        self._watch = Watch(limits, steps.count, compares, images=steps.scores_images)

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
        progress = self.steps.resume(self.folder)
        if progress is None:
            self._evaluate_if_due()
            return
        self._needed = progress.kept
        waiting = list(progress.evaluations)
        for report in (None, *progress.history):
            done = 0
            if report is not None:
                self.history.append(report)
                self._watch.see(report)
                done = report.step
            while waiting and waiting[0].step <= done:
                self.evaluations.append(waiting.pop(0))
                self._watch.see_held_out(self.evaluations[-1])
        watching = self.watching
        if watching is not None and watching.on_resume is not None and self.steps.accelerator.is_main_process:
            watching.on_resume(self.alarms, self.evaluations)

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
        if stopping and self.ended_because is None:
            self._stopped, self.ended_because = stopping[0], f"alarm {stopping[0].rule}"
        elif pausing and self.ended_because is None:
            self.steps.require_finite_weights(report.step - 1)
            self.checkpoint()
            raise Paused(f"{alarm_line(pausing[0])}\nThe same command goes on with this round's training.")

    def checkpoint(self) -> None:
        """Write a checkpoint of everything so far, if there is a place for it."""
        if self.folder is not None:
            best = self._best()
            self._needed = None if best is None else best.step
            self.steps.checkpoint(self.folder, self.history, self.evaluations, self._needed)

    def settle(self) -> int:
        """Go back to the weights to keep; return after how many steps they were reached.

        0: those that training started from; they are not restored here, since the caller has them on disk.
        """
        kept = self._kept_step()
        if kept not in (0, len(self.history)):
            assert self.folder is not None, "kept weights are files"
            self.steps.go_back(self.folder, kept, state=self._carries)
        return kept

    def _best(self) -> HeldOutReport | None:
        """The evaluation whose weights are on disk, since the run may end with them; None: no evaluation's are."""
        if self.watching is None or not self.evaluations:
            return None
        if self.watching.keep == "best":
            return best_report(self.evaluations)
        return furthest_report(self.evaluations) if "held_out" in self.watching.alarms.stop else None

    def _kept_step(self) -> int:
        best, stopped = self._best(), self._stopped
        keeps_best = self.watching is not None and self.watching.keep == "best"
        if best is not None and (keeps_best or (stopped is not None and stopped.rule == "held_out")):
            return best.step
        if stopped is None:
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
        if self._best() is report and self.folder is not None and 0 < done < self.steps.count:
            self.steps.keep_weights(self.folder, done, state=self._carries, needed=self._needed)
        if gains_nothing(self.evaluations, watching.patience) and done < self.steps.count:
            self.ended_because = (
                f"{number_of(watching.patience or 0, 'evaluation')} without a smaller log-loss on held-out pairs"
            )
        return self._watch.see_held_out(report)
