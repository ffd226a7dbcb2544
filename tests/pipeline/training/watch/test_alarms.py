"""Alarms over made-up steps: each rule alone, what it says, and what it does not take for one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pipeline.config.training import AlarmName, Alarms
from pipeline.training.step_log import StepReport
from pipeline.training.watch.advice import ADVICE, alarm_line
from pipeline.training.watch.alarms import Alarm, Watch, read_alarms, standing, standing_alarms, write_alarms
from pipeline.training.watch.held_out import HeldOutReport

STEPS = 40
Curve = Callable[[float], float]


def at(step: int, **values: float) -> StepReport:
    return StepReport(
        step=step,
        steps=STEPS,
        loss=values.get("loss", 0.7),
        learning_rate=1e-6,
        grad_norm=values.get("grad_norm", 1.0),
        margin=values.get("margin", 0.1),
        accuracy=0.5,
        chosen_logp_per_token=values.get("chosen_logp_per_token", -2.0),
        rejected_logp_per_token=values.get("rejected_logp_per_token", -2.5),
        tokens=1,
        response_tokens=1,
        padding=0.0,
        seconds=1.0,
        tokens_per_second=1.0,
        chosen_change_per_token=values.get("chosen_change_per_token"),
        ending_logp=values.get("ending_logp", -1.0),
        expert_imbalance=values.get("expert_imbalance"),
    )


def watched(curves: dict[str, Curve], limits: Alarms | None = None) -> dict[str, Alarm]:
    """Alarms of a run whose series follow ``curves`` from 0 to 1."""
    watch = Watch(limits or Alarms(), STEPS)
    for step in range(1, STEPS + 1):
        watch.see(at(step, **{name: curve((step - 1) / (STEPS - 1)) for name, curve in curves.items()}))
    return {alarm.rule: alarm for alarm in watch.alarms}


def rises(start: float, end: float) -> Curve:
    return lambda done: start + (end - start) * done


@pytest.mark.parametrize(
    ("curves", "rules"),
    [
        # IPO at β = 0.1, whose loss begins at 25.
        ({"loss": rises(25, 120)}, {"loss"}),
        ({"loss": rises(0.7, 0.9)}, set()),
        ({"loss": rises(0.7, 0.1), "margin": rises(0, 40)}, set()),
        # A loss that is negative, and one that begins at 0.
        ({"loss": rises(-2.0, 0.5)}, {"loss"}),
        ({"loss": rises(-2.0, -9.0)}, set()),
        ({"loss": lambda done: 0.8 if done > 0.1 else 0.0}, {"loss"}),
        # Noise of a loss that begins next to 0, and of one that is negative.
        ({"loss": lambda done: 0.2 if done > 0.1 else 0.02}, set()),
        ({"loss": lambda done: 0.1 if done > 0.1 else -0.05}, set()),
        # One odd batch at the beginning.
        ({"loss": lambda done: 0.7 if done else 0.2, "grad_norm": lambda done: 40.0 if done else 1.0}, set()),
        ({"loss": rises(25, 700)}, {"loss", "diverged"}),
        ({"grad_norm": rises(120, 4040)}, {"gradient"}),
        ({"grad_norm": rises(120, 900)}, set()),
        ({"chosen_logp_per_token": rises(-2, -4)}, {"chosen"}),
        ({"chosen_logp_per_token": rises(-2, -2.9)}, set()),
        ({"rejected_logp_per_token": rises(-2.5, -14)}, {"margin"}),
        ({"rejected_logp_per_token": rises(-2.5, -9)}, set()),
        ({"ending_logp": rises(-1, -5)}, {"ending"}),
        ({"ending_logp": rises(-5, -0.1)}, set()),
        ({"expert_imbalance": rises(1.5, 4.5)}, {"experts"}),
        ({"expert_imbalance": rises(1.5, 2.5)}, set()),
        # One odd batch in ten.
        ({"loss": lambda done: 90.0 if round(done * 39) % 10 == 5 else 0.7}, set()),
    ],
)
def test_a_rule_sees_its_fault_and_no_other(curves: dict[str, Curve], rules: set[str]) -> None:
    assert set(watched(curves)) == rules


def test_a_loss_that_runs_away_is_told_within_a_quarter_and_ends_when_it_comes_back() -> None:
    gone = watched({"loss": lambda done: 25.0 if done < 0.06 else 25 + 95 * min(1.0, done * 8)})["loss"]
    assert gone.step <= STEPS / 4 and gone.until is None and gone.value == pytest.approx(95 / 25)
    back = watched({"loss": lambda done: 60.0 if 0.1 < done < 0.5 else 25.0})["loss"]
    assert back.until is not None and back.step < back.until < 25


def test_changes_from_the_reference_count_where_they_are_known() -> None:
    """They vary less than log-probs, which depend on which responses a batch holds."""
    watch = Watch(Alarms(), STEPS)
    for step in range(1, STEPS + 1):
        watch.see(at(step, chosen_logp_per_token=-2.0 - 3 * (step > 3), chosen_change_per_token=-0.1))
    assert watch.alarms == ()


def evaluation(step: int, margins: tuple[float, ...], entropy: float = 2.0) -> HeldOutReport:
    return HeldOutReport(step, margins, -2.0, -1.0, entropy)


def held_out(margin: Curve, *reports: HeldOutReport, compares: bool = True) -> list[AlarmName]:
    watch = Watch(Alarms(), STEPS, compares=compares)
    waiting = [*reports]
    for step in range(STEPS + 1):
        if step:
            watch.see(at(step, margin=margin(step / STEPS)))
        while waiting and waiting[0].step == step:
            watch.see_held_out(waiting.pop(0))
    return [alarm.rule for alarm in watch.alarms]


def test_held_out_margins_that_fall_while_training_margins_rise() -> None:
    start = evaluation(0, (0.0,) * 10)
    worse = evaluation(20, (-0.5, -0.4, -0.6, -0.5, -0.3, -0.5, -0.6, -0.4, -0.5, -0.6))
    noisy = evaluation(20, (-5.0, 4.0, -6.0, 5.0, -3.0, 2.5, -6.0, 4.0, -5.0, 4.5))
    assert held_out(rises(0, 3), start, worse) == ["held_out"]
    assert held_out(rises(0, 3), start, noisy) == []
    assert held_out(rises(0, -3), start, worse) == []
    # Nine pairs say too little, and likelihood alone says nothing of margins.
    assert held_out(rises(0, 3), evaluation(0, (0.0,) * 9), evaluation(20, worse.margins[:9])) == []
    assert held_out(rises(0, 3), start, worse, compares=False) == []


def test_the_held_out_alarm_ends_when_the_margin_is_as_good_again() -> None:
    spread = (0.01, 0.0, -0.01, 0.005, -0.005, 0.01, 0.0, -0.01, 0.002, -0.002)

    def around(step: int, height: float) -> HeldOutReport:
        return evaluation(step, tuple(height + step * one for one in spread))

    def seen(margin: Curve, *heights: float) -> Alarm:
        watch = Watch(Alarms(), STEPS)
        for step in range(1, STEPS + 1):
            watch.see(at(step, margin=margin(step / STEPS)))
            if step % 10 == 0:
                watch.see_held_out(around(step, heights[step // 10 - 1]))
        (alarm,) = watch.alarms
        return alarm

    fallen = seen(rises(0, 3), 1.0, 2.0, 1.0, 0.5)
    assert (fallen.step, fallen.until) == (30, None) and fallen.value > 20
    assert seen(rises(0, 3), 1.0, 0.5, 2.0, 2.5).until == 30, "a new best"
    assert seen(rises(0, 3), 1.0, 0.5, 0.99, 0.98).until == 30, "nearly the best"
    # It is over although training margins, which a fall would need, have fallen too.
    back = seen(lambda done: 3 * done if done < 0.6 else 0.1, 1.0, 0.5, 0.99, 0.98)
    assert back.until == 30


def test_steps_without_a_value_leave_its_rules_alone() -> None:
    """A batch of single responses need not hold a desirable one."""
    watch = Watch(Alarms(), STEPS)
    for step in range(1, STEPS + 1):
        watch.see(replace(at(step, chosen_logp_per_token=-2.0), chosen_logp_per_token=-2.0 if step % 2 else None))
    assert watch.alarms == ()


@pytest.mark.parametrize("steps", [1, 5, 20, 49, 50, 59])
def test_the_beginning_is_never_one_batch(steps: int) -> None:
    watch = Watch(Alarms(), steps)
    for step in (1, 2):
        watch.see(at(step, loss=float(step)))
    assert watch.beginning("loss") is None
    watch.see(at(3, loss=9.0))
    assert watch.beginning("loss") == 2.0


def test_entropy_that_is_gone() -> None:
    assert held_out(rises(0, 0), evaluation(0, (0.0,) * 4), evaluation(20, (0.0,) * 4, entropy=0.3)) == ["entropy"]
    assert held_out(rises(0, 0), evaluation(0, (0.0,) * 4), evaluation(20, (0.0,) * 4, entropy=0.5)) == []


def test_limits_and_actions_are_settings() -> None:
    curves: dict[str, Curve] = {"loss": rises(25, 120)}
    assert watched(curves, Alarms(loss=None)) == {} and watched(curves, Alarms(loss=9.0)) == {}
    assert watched(curves)["loss"].action == "warn"
    assert watched(curves, Alarms(stop=("loss",)))["loss"].action == "stop"
    assert watched(curves, Alarms(stop=(), pause=("loss",)))["loss"].action == "pause"
    with pytest.raises(ValueError, match="stop and pause both hold loss"):
        Alarms(stop=("loss",), pause=("loss",))


def test_only_alarms_of_the_kept_weights_stand() -> None:
    raised = Alarm("loss", 10, 40, 3.0, 0.5, "warn")
    over, again = (Alarm("gradient", 5, 40, 30.0, 10.0, "warn", until=until) for until in (30, 31))
    assert standing((raised, over, again), 40) == (raised, again) and standing((raised,), 9) == ()
    # The last quarter is that of the kept steps, not of the plan.
    early = Alarm("gradient", 5, 40, 30.0, 10.0, "warn", until=19)
    assert [standing((early,), kept) for kept in (5, 20, 25, 26)] == [(early,), (early,), (early,), ()]
    # Nothing but the start was worth keeping, or training was ended: the alarm is what there is to say.
    assert standing((raised,), 0) == (raised,)
    ended = Alarm("diverged", 17, 40, 9.5, 9.0, "stop")
    assert standing((ended,), 10) == (ended,)
    assert standing((replace(ended, action="pause", until=30),), 10) == (), "of later steps, and over"


def test_the_file_of_alarms(tmp_path: Path) -> None:
    raised = (Alarm("loss", 10, 40, 3.0, 0.5, "warn"), Alarm("gradient", 5, 40, 30.0, 10.0, "warn", until=20))
    assert read_alarms(tmp_path) == ((), 0)
    write_alarms(tmp_path, raised, 40)
    assert read_alarms(tmp_path) == (raised, 40) and standing_alarms(tmp_path) == raised[:1]
    write_alarms(tmp_path, (), 40)
    assert not any(tmp_path.iterdir())


def test_every_rule_has_a_limit_and_advice() -> None:
    assert set(ADVICE) == set(get_args(AlarmName)) == set(Alarms.model_fields) - {"stop", "pause"}
    line = alarm_line(Alarm("loss", 10, 40, 3.8, 0.5, "warn"), "ipo")
    begun = "alarm loss, step 10 of 40: the loss stays 3.8 times its beginning (at least 0.5) above it (limit 0.5). "
    assert line.startswith(begun)
    assert "training.learning_rate" in line and line.endswith("; prefloop losses ipo") and "\n" not in line
    assert alarm_line(Alarm("entropy", 1, 2, 0.1, 0.2, "warn", until=2)) == (
        "alarm entropy, step 1 of 2: the policy keeps 10% of its entropy on held-out responses (limit 20%), back "
        "within it since step 2. A larger loss.beta, a smaller learning rate or fewer training.epochs usually helps"
    )
