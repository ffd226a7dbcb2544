"""Alarms of a training run: rules over the step log and the evaluations on held-out pairs. Torch-free.

Losses differ in unit and sign (IPO is squared, SimPO averages tokens, KTO lies in [0, 1], a list loss sums over K), so
every rule compares the newest steps with the run's own beginning. Both are medians over a window, which single odd
batches do not move: the beginning is the first 5 % of the steps (3 to 19), the present the last 5 % (3 to 50), so
fewer than six steps raise none. Rules on log-probs are in nats per token, the same for every loss, whatever its β.
Of images, whose scores are errors, rules on the errors' growth over the reference's stand in the place of those.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal

from pipeline.config.training import AlarmName, Alarms
from pipeline.errors import RunError
from pipeline.storage.atomic import write_json
from pipeline.training.step_log import StepReport
from pipeline.training.watch.held_out import HeldOutReport, furthest_report
from pipeline.training.watch.image_errors import chosen_error, rejected_error

ALARMS_FILE = "alarms.json"
# Held-out pairs from which the standard error of their mean says enough.
MIN_PAIRS = 10
# Steps of which a median says something although one batch is odd.
FEWEST_STEPS = 3
# The least that a rise of the loss is a share of. A policy that prefers neither response has a loss of ln 2 nats
# (logistic), 0.5 (kto, in [0, 1]), or 1/(4β²) (ipo, squared; 25 at β = 0.1): those are shares of their beginning. One
# that begins nearer to 0, after earlier rounds or by its formula, would have alarms by noise alone.
SMALL_LOSS = 0.5
AlarmAction = Literal["warn", "stop", "pause"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule's limit that was passed.

    Attributes:
        rule: its name, a field of ``Alarms``.
        step: the first step, of ``steps``, at which it was passed.
        value: the worst value since; its unit is that of ``limit``.
        action: what it does.
        until: the step at which the run came back within the limit; None: it did not.
    """

    rule: AlarmName
    step: int
    steps: int
    value: float
    limit: float
    action: AlarmAction
    until: int | None = None


class Watch:
    """The alarms of one training run. A run that is resumed shows it the steps before again."""

    def __init__(self, limits: Alarms, steps: int, compares: bool = True, images: bool = False) -> None:
        """``steps``: of the whole run; ``compares``: the loss compares responses, so a margin says something;
        ``images``: the policy makes images, so scores are errors, not log-probs of tokens."""
        self._limits, self._steps, self._compares = limits, steps, compares
        self._rules = IMAGE_RULES if images else STEP_RULES
        # Odd, so that its median is one step's value.
        self._first = max((min(round(steps / 20), 20) - 1) | 1, FEWEST_STEPS)
        self._last = min(max(round(steps / 20), FEWEST_STEPS), 50)
        self._begun: dict[str, list[float]] = {}
        self._recent: dict[str, deque[float]] = {}
        self._evaluations: list[tuple[HeldOutReport, float | None]] = []
        self._alarms: dict[AlarmName, Alarm] = {}

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms so far, in the order in which they were raised."""
        return tuple(self._alarms.values())

    def see(self, step: StepReport) -> tuple[Alarm, ...]:
        """Take up a step; return the alarms that it raises."""
        for name, read in SERIES.items():
            value = read(step)
            if value is None:
                continue
            begun = self._begun.setdefault(name, [])
            if len(begun) < self._first:
                begun.append(value)
            else:
                self._recent.setdefault(name, deque(maxlen=self._last)).append(value)
        found = [self._judge(rule, measure(self), step.step) for rule, measure in self._rules.items()]
        return tuple(alarm for alarm in found if alarm is not None)

    def see_held_out(self, report: HeldOutReport) -> tuple[Alarm, ...]:
        """Take up an evaluation, after the step that it follows; return the alarms that it raises."""
        self._evaluations.append((report, self.present("margin")))
        start = self._evaluations[0][0].entropy
        kept = report.entropy / start if start > 0 else None
        found = [
            self._judge("held_out", self._fallen(report), report.step),
            self._judge("entropy", kept, report.step, below=True),
        ]
        return tuple(alarm for alarm in found if alarm is not None)

    def beginning(self, name: str) -> float | None:
        """The median of a series' first steps; None before they are complete."""
        begun = self._begun.get(name, ())
        return median(begun) if len(begun) == self._first else None

    def present(self, name: str) -> float | None:
        """The median of a series' newest steps; None before a whole window has followed the beginning."""
        recent = self._recent.get(name, ())
        return median(recent) if len(recent) == self._last else None

    def change(self, name: str) -> float | None:
        """How far a series is now above its beginning."""
        now, begun = self.present(name), self.beginning(name)
        return None if now is None or begun is None else now - begun

    def _fallen(self, report: HeldOutReport) -> float | None:
        """Fall of the held-out margin from its best, in standard errors over pairs; 0 at a new best.

        None: it cannot be told, or training margins, which have not risen since, explain it.
        """
        if not self._compares or len(report.margins) < MIN_PAIRS:
            return None
        best = furthest_report([seen for seen, _ in self._evaluations])
        if best is report:
            return 0.0
        falls = [old - new for old, new in zip(best.margins, report.margins, strict=True)]
        error = stdev(falls) / math.sqrt(len(falls))
        if error == 0:
            return None
        fall = fmean(falls) / error
        return fall if self._risen_since(best) or fall <= (self._limits.held_out or 0.0) else None

    def _risen_since(self, best: HeldOutReport) -> bool:
        """Whether training margins are above those at the evaluation ``best``."""
        then = next(margin for seen, margin in self._evaluations if seen is best)
        now = self._evaluations[-1][1]
        return now is not None and now > (then if then is not None else self.beginning("margin") or 0.0)

    def _judge(self, rule: AlarmName, value: float | None, step: int, below: bool = False) -> Alarm | None:
        """Raise, keep up or end the alarm of ``rule``; return it if it is new."""
        limit, raised = limit_of(self._limits, rule), self._alarms.get(rule)
        if value is None or limit is None:
            return None
        passed = value < limit if below else value > limit
        if raised is None:
            if not passed:
                return None
            raised = Alarm(rule, step, self._steps, value, limit, action_of(self._limits, rule))
            self._alarms[rule] = raised
            return raised
        worst = (min if below else max)(raised.value, value)
        until = None if passed else (raised.until or step)
        self._alarms[rule] = replace(raised, value=worst, until=until)
        return None


def _gap(step: StepReport) -> float | None:
    """Chosen minus rejected, nats a token: where known, of the changes from the reference, which vary less."""
    if step.chosen_change_per_token is not None and step.rejected_change_per_token is not None:
        return step.chosen_change_per_token - step.rejected_change_per_token
    if step.chosen_logp_per_token is None or step.rejected_logp_per_token is None:
        return None
    return step.chosen_logp_per_token - step.rejected_logp_per_token


def _chosen(step: StepReport) -> float | None:
    known = step.chosen_change_per_token
    return step.chosen_logp_per_token if known is None else known


SERIES: dict[str, Callable[[StepReport], float | None]] = {
    "loss": lambda step: step.loss,
    "gradient": lambda step: step.grad_norm,
    "margin": lambda step: step.margin,
    "gap": _gap,
    "chosen": _chosen,
    "ending": lambda step: step.ending_logp,
    "experts": lambda step: step.expert_imbalance,
    "chosen_error": chosen_error,
    "rejected_error": rejected_error,
}


def _rise(watch: Watch) -> float | None:
    """Rise of the loss over its beginning, as a share of that, or of ``SMALL_LOSS`` if it is smaller."""
    change, begun = watch.change("loss"), watch.beginning("loss")
    return None if change is None or begun is None else change / max(abs(begun), SMALL_LOSS)


def _growth(name: str) -> Callable[[Watch], float | None]:
    def measure(watch: Watch) -> float | None:
        now, begun = watch.present(name), watch.beginning(name)
        return None if now is None or not begun else now / begun

    return measure


def _apart(watch: Watch) -> float | None:
    change = watch.change("gap")
    return None if change is None else abs(change)


def _fall(name: str) -> Callable[[Watch], float | None]:
    def measure(watch: Watch) -> float | None:
        change = watch.change(name)
        return None if change is None else -change

    return measure


STEP_RULES: dict[AlarmName, Callable[[Watch], float | None]] = {
    "loss": _rise,
    "diverged": _rise,
    "gradient": _growth("gradient"),
    "margin": _apart,
    "chosen": _fall("chosen"),
    "ending": _fall("ending"),
    "experts": _growth("experts"),
}


def _both_errors(watch: Watch) -> float | None:
    """The smaller of both sides' growths while the loss is below its beginning, else 1: nothing is hidden by it."""
    growths = [watch.present(name) for name in ("chosen_error", "rejected_error")]
    known = [growth for growth in growths if growth is not None]
    if len(known) < len(growths):
        return None
    return min(known) if (watch.change("loss") or 0.0) < 0 else 1.0


# The loss of a few steps says little of images: few draws of noise make pairs, and so batches, differ much.
IMAGE_RULES: dict[AlarmName, Callable[[Watch], float | None]] = {
    "diverged": _rise,
    "gradient": _growth("gradient"),
    "winner_error": lambda watch: watch.present("chosen_error"),
    "both_errors": _both_errors,
}


def limit_of(limits: Alarms, rule: AlarmName) -> float | None:
    """Return the limit of ``rule``; None if it is off."""
    found: float | None = limits.__dict__[rule]
    return found


def action_of(limits: Alarms, rule: AlarmName) -> AlarmAction:
    """Return what a raised alarm does."""
    return "stop" if rule in limits.stop else "pause" if rule in limits.pause else "warn"


def standing(alarms: Iterable[Alarm], kept_step: int) -> tuple[Alarm, ...]:
    """Return the alarms that say something of the round's policy, the weights of step ``kept_step``.

    Not those that were over for the last quarter of these steps; nor, of later steps, warnings and what came back
    within its limit. If nothing but the start was worth keeping, all of them do.
    """
    return tuple(alarm for alarm in alarms if kept_step == 0 or _stands(alarm, kept_step))


def _stands(alarm: Alarm, kept_step: int) -> bool:
    if alarm.step > kept_step:
        return alarm.action != "warn" and alarm.until is None
    return alarm.until is None or kept_step - alarm.until < kept_step / 4


def write_alarms(folder: Path, alarms: Sequence[Alarm], kept_step: int) -> None:
    """Write ``alarms.json``, if there are any. ``kept_step``: the step whose weights are the round's policy."""
    if alarms:
        write_json(folder / ALARMS_FILE, {"kept_step": kept_step, "alarms": [asdict(alarm) for alarm in alarms]})
    else:
        (folder / ALARMS_FILE).unlink(missing_ok=True)


def read_alarms(folder: Path) -> tuple[tuple[Alarm, ...], int]:
    """Return the alarms in ``alarms.json`` and the kept step; none without a file. Raises ``RunError``."""
    file = folder / ALARMS_FILE
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        return tuple(Alarm(**alarm) for alarm in plain["alarms"]), int(plain["kept_step"])
    except FileNotFoundError:
        return (), 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not a readable list of alarms ({error})") from None


def standing_alarms(folder: Path) -> tuple[Alarm, ...]:
    """Return the alarms of ``alarms.json`` that concern the weights that are kept. Raises ``RunError``."""
    return standing(*read_alarms(folder))
