"""Each rule of the gate, alone: broken only when the whole interval lies beyond the limit."""

import pytest

from pipeline.config import Gate
from pipeline.evaluation.gate import Judgement, Standing, decide
from pipeline.evaluation.intervals import Interval


def at(value: float, spread: float = 0.04) -> Interval:
    return Interval(value, value - spread, value + spread)


def decided(
    settings: Gate | None = None, *, best: int = 1, base: int = 0, prompts: int = 100, **measures: Interval | None
) -> Judgement:
    """Round 3, whose training reward has surely risen, and what else is measured."""
    usual: dict[str, Interval | None] = {"win_rate_vs_base": at(0.8), "win_rate_vs_best": at(0.6)}
    return decide(settings or Gate(), usual | measures, Standing(3, best, base, prompts))


def broken(judgement: Judgement) -> list[str]:
    return [rule.name for rule in judgement.rules if rule.broken]


def test_a_better_round_is_promoted_and_becomes_the_best() -> None:
    judgement = decided()
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("promote", "better", 3)


def test_a_round_that_is_not_surely_better_leaves_the_best_one() -> None:
    judgement = decided(win_rate_vs_best=at(0.53))
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("promote", "not_better", 1)


LIMITS = [
    ("kl", "kl", 2.1, 2.02),
    ("length", "length_ratio", 2.1, 2.02),
    ("short", "finished_length_ratio", 0.1, 0.18),
    ("repetition", "repetition_rise", 0.4, 0.32),
    ("unfinished", "stop_fall", 0.4, 0.32),
    ("distinct", "distinct_ratio", 0.3, 0.38),
]


@pytest.mark.parametrize(("rule", "measure", "beyond", "unsure"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_limit_pauses_the_run_once_it_is_surely_passed(rule: str, measure: str, beyond: float, unsure: float) -> None:
    judgement = decided(**{measure: at(beyond)})
    assert (judgement.verdict, judgement.why) == ("pause", "broken_rules") and broken(judgement) == [rule]
    # What is suspect becomes the best round of none.
    assert judgement.best_round == 1
    assert decided(**{measure: at(unsure)}).verdict == "promote"
    assert decided(**{measure: None}).verdict == "promote"


def test_a_slide_of_the_length_pauses_the_run_where_a_single_fall_does_not() -> None:
    fallen = {"finished_length_ratio": at(0.5)}
    slide = {**fallen, "finished_length_vs_previous": at(0.7), "previous_finished_length_ratio": at(0.7)}
    assert broken(decided(**slide)) == ["shrinking"]
    assert decided(Gate(min_length_falling=None), **slide).verdict == "promote"
    # It fell once and stays, or has only now begun to fall.
    assert decided(**(slide | {"finished_length_vs_previous": at(0.92, 0.01)})).verdict == "promote"
    assert decided(**(slide | {"previous_finished_length_ratio": at(1.0)})).verdict == "promote"
    assert decided(**fallen).verdict == "promote"
    # It slides, but not so far, or not surely.
    assert decided(**(slide | {"finished_length_ratio": at(0.58)})).verdict == "promote"
    assert decided(**(slide | {"finished_length_vs_previous": at(0.88, 0.15)})).verdict == "promote"
    assert broken(decided(**(slide | {"finished_length_vs_previous": at(0.88, 0.1)}))) == ["shrinking"]


def test_a_rule_can_be_taken_away_and_an_alarm_can_do_other_things() -> None:
    assert decided(Gate(max_kl=None), kl=at(9.0)).verdict == "promote"
    assert decided(Gate(alarm="roll_back"), kl=at(9.0)).verdict == "roll_back"
    assert decided(Gate(alarm="stop"), kl=at(9.0)).verdict == "stop"


def test_what_only_the_training_labeller_likes_pauses_the_run() -> None:
    hacked = decided(second_win_rate_vs_base=at(0.38), gap=at(0.42))
    assert hacked.verdict == "pause" and broken(hacked) == ["second", "gap"]
    flat = decided(second_win_rate_vs_base=at(0.5), gap=at(0.3))
    assert broken(flat) == ["gap"]
    # A second labeller that sees some of the gain agrees.
    assert decided(second_win_rate_vs_base=at(0.56), gap=at(0.4)).verdict == "promote"
    # A training labeller that sees none has not been hacked; rolling back is another rule's.
    worse = decided(win_rate_vs_base=at(0.5), second_win_rate_vs_base=at(0.38), gap=at(0.12))
    assert worse.verdict == "promote"


def test_going_on_past_the_peak_pauses_the_run() -> None:
    peak = {"second_win_rate_vs_base": at(0.6), "second_win_rate_vs_best": at(0.36)}
    assert broken(decided(**peak)) == ["second_best"]
    assert decided(**(peak | {"win_rate_vs_best": at(0.5)})).verdict == "promote"


def test_a_round_that_the_second_labeller_likes_less_is_not_the_best() -> None:
    judgement = decided(second_win_rate_vs_best=at(0.45, 0.04))
    assert (judgement.verdict, judgement.best_round) == ("promote", 1)


def test_a_gain_by_length_alone_pauses_the_run_unless_the_second_labeller_sees_it() -> None:
    longer = {"length_ratio": at(1.5), "length_share": at(0.95)}
    assert broken(decided(**longer)) == ["length_share"]
    assert decided(**(longer | {"length_ratio": at(1.42)})).verdict == "promote"
    assert decided(**(longer | {"length_share": at(0.82)})).verdict == "promote"
    assert decided(**(longer | {"second_win_rate_vs_base": at(0.6)})).verdict == "promote"


def test_a_round_that_is_surely_worse_than_the_best_is_rolled_back() -> None:
    judgement = decided(win_rate_vs_best=at(0.4))
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("roll_back", "worse", 1)
    assert decided(win_rate_vs_best=at(0.42)).verdict == "promote"
    assert decided(Gate(roll_back_below=None), win_rate_vs_best=at(0.2)).verdict == "promote"


def test_a_fall_of_the_mean_reward_keeps_the_best_round_whatever_the_ranks_say() -> None:
    # The quickstart on another CPU: from 4.2 to 3.8 with 53 % wins, once promoted.
    fallen = {"win_rate_vs_best": at(0.53), "reward_change_vs_best": at(-0.42, 0.3)}
    judgement = decided(**fallen)
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("roll_back", "reward_fell", 1)
    # More wins do not make up for it.
    assert decided(**(fallen | {"win_rate_vs_best": at(0.6)})).best_round == 1
    assert decided(**(fallen | {"reward_change_vs_best": at(-0.28, 0.3)})).verdict == "promote"
    assert decided(Gate(max_reward_fall=0.2), **fallen).verdict == "promote"
    assert decided(Gate(max_reward_fall=None), **fallen).verdict == "promote"
    alarmed = decided(Gate(on_reward_fall="alarm"), **fallen)
    assert (alarmed.verdict, alarmed.best_round, broken(alarmed)) == ("pause", 1, ["reward"])
    assert not [rule for rule in judgement.rules if rule.name == "reward"]


def test_a_round_whose_mean_the_second_labeller_sees_fall_is_not_the_best() -> None:
    judgement = decided(second_reward_change_vs_best=at(-0.2, 0.1))
    assert (judgement.verdict, judgement.best_round) == ("promote", 1)


def test_rounds_that_surely_gain_nothing_end_the_run() -> None:
    judgement = decided(win_rate_vs_best=at(0.5), win_rate_since_best=at(0.5))
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("stop", "no_gain", 1)
    # With few prompts nobody can tell.
    assert decided(win_rate_vs_best=at(0.5), win_rate_since_best=at(0.5, 0.1)).verdict == "promote"
    assert decided(Gate(patience=None), win_rate_since_best=at(0.5)).verdict == "promote"


def test_too_few_prompts_judge_nothing() -> None:
    judgement = decided(prompts=19, kl=at(9.0))
    assert (judgement.verdict, judgement.why, judgement.rules) == ("promote", "few_prompts", ())
    assert decided(prompts=20, kl=at(9.0)).verdict == "pause"


def test_without_any_measure_the_newest_round_is_the_best() -> None:
    judgement = decide(Gate(), {}, Standing(3, 1, 0, 100))
    assert (judgement.verdict, judgement.why, judgement.best_round) == ("promote", "unmeasured", 3)
    assert judgement.rules == ()


def test_a_round_that_the_run_went_on_from_is_promoted() -> None:
    judgement = decide(Gate(), {"kl": at(9.0)}, Standing(3, 1, 0, 100, overtaken=True))
    assert (judgement.verdict, judgement.best_round) == ("promote", 1)
    assert (judgement.why, judgement.too_late) == ("broken_rules", "pause")
