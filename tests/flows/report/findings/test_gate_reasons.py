"""The sentences that a gate's judgement becomes."""

import pytest

from flows.report.findings.gate_reasons import gate_reasons
from pipeline.config import Gate
from pipeline.evaluation.gate import Decision, Standing, decide
from pipeline.evaluation.intervals import Interval


def at(value: float, spread: float = 0.04) -> Interval:
    return Interval(value, value - spread, value + spread)


def reasons(
    settings: Gate | None = None, standing: Standing | None = None, **measures: Interval | None
) -> tuple[str, ...]:
    """Of round 3, whose training reward has surely risen, and what else is measured."""
    settings, standing = settings or Gate(), standing or Standing(3, 1, 0, 100)
    usual: dict[str, Interval | None] = {"win_rate_vs_base": at(0.8), "win_rate_vs_best": at(0.6)}
    known = usual | measures
    return gate_reasons(decide(settings, known, standing), settings, known, standing)


def test_a_fall_of_the_mean_reward_is_told_in_its_units_beside_the_win_rate() -> None:
    assert reasons(win_rate_vs_best=at(0.53), reward_change_vs_best=at(-0.42, 0.3)) == (
        "the mean reward fell by 0.42 [0.12, 0.72] from round 1, the best so far, at a win rate 53.0% [49.0%, 57.0%] "
        "over it",
    )
    alarm = reasons(Gate(on_reward_fall="alarm"), reward_change_vs_best=at(-0.42, 0.3))
    assert alarm == (
        "the mean reward changed by -0.42 from round 1, the best so far (95 % interval -0.72 to -0.12, limit 0.00)",
    )


BROKEN = [
    ("kl", 2.1, "KL to the start is 2.10 nats per token (95 % interval 2.06 to 2.14, limit 2.00)"),
    ("length_ratio", 2.1, "responses are 2.10 times as long as round 0's (95 % interval 2.06 to 2.14, limit 2.00)"),
    (
        "finished_length_ratio",
        0.1,
        "responses that end by themselves are 0.10 times as long as round 0's (95 % interval 0.06 to 0.14, limit 0.20)",
    ),
    (
        "repetition_rise",
        0.4,
        "the share of responses that repeat themselves rose by 40.0% over round 0 "
        "(95 % interval 36.0% to 44.0%, limit 30.0%)",
    ),
    (
        "stop_fall",
        0.4,
        "the share of responses that end by themselves fell by 40.0% from round 0 "
        "(95 % interval 36.0% to 44.0%, limit 30.0%)",
    ),
    (
        "distinct_ratio",
        0.3,
        "responses hold 0.30 times as many different pairs of words as round 0's, in equally many words "
        "(95 % interval 0.26 to 0.34, limit 0.40)",
    ),
]


@pytest.mark.parametrize(("measure", "value", "said"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_rule_is_one_sentence(measure: str, value: float, said: str) -> None:
    assert reasons(**{measure: at(value)}) == (said,)


def test_each_broken_rule_has_its_sentence() -> None:
    hacked = reasons(second_win_rate_vs_base=at(0.38), gap=at(0.42))
    gain = "the training labeller sees a gain (win rate 80.0% [76.0%, 84.0%] over round 0)"
    assert hacked == (
        f"{gain}, but by the second labeller the win rate is 38.0% (95 % interval 34.0% to 42.0%, limit 45.0%)",
        f"{gain}, the second labeller none (win rate 38.0% [34.0%, 42.0%]): a gap of 42.0% "
        "(95 % interval 38.0% to 46.0%, limit 25.0%)",
    )
    (peak,) = reasons(second_win_rate_vs_base=at(0.6), second_win_rate_vs_best=at(0.36))
    assert peak.startswith("the training labeller prefers the round to round 1, but by the second labeller the win ")
    (longer,) = reasons(length_ratio=at(1.5), length_share=at(0.95))
    assert longer.startswith("95.0% of the gain in reward over round 0 goes with longer responses (")


def test_a_rule_that_measures_from_a_later_round_names_it() -> None:
    (kl,) = reasons(standing=Standing(5, 4, 2, 100), kl=at(2.5))
    assert kl.startswith("KL to the start is 2.50 nats per token more than that of round 2 (")


def test_a_value_without_an_interval_stands_alone() -> None:
    assert reasons(kl=at(2.5, 0)) == ("KL to the start is 2.50 nats per token (limit 2.00)",)


def test_without_a_broken_rule_the_win_rates_are_the_reason() -> None:
    best = "the best so far, is surely below"
    assert reasons() == (
        "no rule is broken, and the round is the best so far: win rate 60.0% [56.0%, 64.0%] over round 1",
    )
    assert reasons(win_rate_vs_best=at(0.53)) == (
        "no rule is broken; round 1 is still the best: win rate 53.0% [49.0%, 57.0%] over it",
    )
    assert reasons(win_rate_vs_best=at(0.4)) == (f"win rate 40.0% [36.0%, 44.0%] over round 1, {best} 45%",)
    assert reasons(win_rate_vs_best=at(0.5), win_rate_since_best=at(0.5)) == (
        f"no gain in 3 rounds: win rate 50.0% [46.0%, 54.0%] over round 1, {best} 55%",
    )
    assert reasons(win_rate_vs_best=None) == (
        "no rule is broken; nothing tells whether the round is better than the ones before",
    )
    assert reasons(standing=Standing(3, 1, 0, 19)) == (
        "19 held-out prompts are too few to judge by (gate.min_prompts 20)",
    )


def test_a_verdict_that_came_too_late_is_the_last_sentence() -> None:
    assert reasons(standing=Standing(3, 1, 0, 100, overtaken=True), kl=at(9.0)) == (
        "KL to the start is 9.00 nats per token (95 % interval 8.96 to 9.04, limit 2.00)",
        "pause, but round 4 had begun before this round had a gate",
    )


def test_a_decision_survives_its_file() -> None:
    settings, standing, measures = Gate(), Standing(3, 1, 0, 100), {"kl": at(9.0)}
    made = decide(settings, measures, standing)
    told = gate_reasons(made, settings, measures, standing)
    decision = Decision(decision=made.verdict, reasons=told, best_round=made.best_round, rules=made.rules)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_without_a_labeller_a_change_in_held_out_accuracy_is_called_that() -> None:
    settings, standing = Gate(), Standing(3, 1, 0, 100, ranks=True)
    for win_rate, said in (
        (Interval(0.55, 0.52, 0.58), "a change in held-out accuracy of +10.0% [+4.0%, +16.0%] over round 1"),
        (Interval(0.4, 0.37, 0.43), "of -20.0% [-26.0%, -14.0%] over round 1, the best so far, is surely below -10%"),
    ):
        (reason,) = reasons(settings, standing, win_rate_vs_best=win_rate)
        assert said in reason and "win rate" not in reason


def test_alarms_come_before_few_prompts() -> None:
    assert reasons(standing=Standing(3, 1, 0, 19, alarms=("alarm loss",))) == ("alarm loss",)
