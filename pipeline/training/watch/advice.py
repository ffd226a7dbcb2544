"""Alarms in sentences: what was found, and what usually helps. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.training import AlarmName
from pipeline.training.watch.alarms import SMALL_LOSS, Alarm

SLOWER = "a smaller training.learning_rate, or a longer training.warmup, usually helps"
SMALL = f" (at least {SMALL_LOSS:g})"


@dataclass(frozen=True, slots=True)
class Advice:
    """``says``: what a value means, with places for ``value`` and ``limit``; ``helps``: what usually helps."""

    says: str
    helps: str


ADVICE: Mapping[AlarmName, Advice] = {
    "loss": Advice(
        f"the loss stays {{value:.3g}} times its beginning{SMALL} above it (limit {{limit:g}})",
        f"{SLOWER}; with a squared loss such as ipo, so does a larger loss.beta",
    ),
    "diverged": Advice(
        f"the loss has risen by {{value:.3g}} times its beginning{SMALL} (limit {{limit:g}})",
        f"{SLOWER}; with a squared loss such as ipo, so does a larger loss.beta",
    ),
    "gradient": Advice(
        "the gradient norm is {value:.3g} times that of the first steps (limit {limit:g})",
        f"{SLOWER}; training.max_grad_norm bounds each step, but not where the steps lead",
    ),
    "margin": Advice(
        "chosen and rejected responses have moved apart by {value:.3g} nats a token (limit {limit:g})",
        "a larger loss.beta, fewer training.epochs, or a loss with a target for the margin (ipo, cal_dpo) helps",
    ),
    "chosen": Advice(
        "chosen responses have lost {value:.3g} nats a token (limit {limit:g})",
        "a likelihood term (loss.nll), a smaller learning rate, or a loss that holds chosen responses in place (dpop, "
        "cal_dpo, apo_zero) usually helps; apo_down lowers both on purpose",
    ),
    "ending": Advice(
        "the end token of chosen responses has lost {value:.3g} nats (limit {limit:g}), so responses grow longer",
        "a loss that averages over tokens (simpo, rdpo's length term) or a likelihood term (loss.nll) usually helps; "
        "check that responses in the data end with the end token",
    ),
    "experts": Advice(
        "the busiest expert's load, over the mean, is {value:.3g} times that of the first steps (limit {limit:g})",
        "a larger training.router_aux_loss_coef, a smaller learning rate, or adapters that leave routers alone usually "
        "helps",
    ),
    "winner_error": Advice(
        "the error on chosen images is {value:.3g} times the reference's (limit {limit:g}): the policy unlearns what "
        "it should prefer",
        "a larger loss.beta, a smaller learning rate, more pairs, or a fixed reference usually helps; pairs in the "
        "right order say nothing here",
    ),
    "both_errors": Advice(
        "the errors on chosen and on rejected images are both at least {value:.3g} times the reference's (limit "
        "{limit:g}) while the loss falls: it falls because rejected images are unlearnt faster than chosen ones",
        "a larger loss.beta, a smaller learning rate, more pairs, or a fixed reference usually helps; judge by the "
        "reward on held-out prompts",
    ),
    "held_out": Advice(
        "the held-out margin has fallen {value:.3g} standard errors from its best (limit {limit:g}) while the training "
        "margin rises",
        "fewer training.epochs, more data, or training.keep=best with training.early_stop usually helps",
    ),
    "entropy": Advice(
        "the policy keeps {value:.0%} of its entropy on held-out responses (limit {limit:.0%})",
        "a larger loss.beta, a smaller learning rate or fewer training.epochs usually helps",
    ),
}


def alarm_line(alarm: Alarm, preset: str | None = None) -> str:
    """Return the alarm as one line; ``preset``: the loss, whose page is then named."""
    advice = ADVICE[alarm.rule]
    until = "" if alarm.until is None else f", back within it since step {alarm.until}"
    helps = f"{advice.helps[0].upper()}{advice.helps[1:]}"
    page = "" if preset in (None, "custom") else f"; prefloop losses {preset}"
    return (
        f"alarm {alarm.rule}, step {alarm.step} of {alarm.steps}: "
        f"{advice.says.format(value=alarm.value, limit=alarm.limit)}{until}. {helps}{page}"
    )
