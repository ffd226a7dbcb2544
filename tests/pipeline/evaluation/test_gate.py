"""Each rule of the gate, alone: broken only when the whole interval lies beyond the limit."""

import pytest

from pipeline.config import Gate
from pipeline.evaluation.gate import Decision, Standing, decide
from pipeline.evaluation.intervals import Interval


def at(value: float, spread: float = 0.04) -> Interval:
    return Interval(value, value - spread, value + spread)


def decided(
    settings: Gate | None = None, *, best: int = 1, base: int = 0, prompts: int = 100, **measures: Interval | None
) -> Decision:
    """Round 3, whose training reward has surely risen, and what else is measured."""
    usual: dict[str, Interval | None] = {"win_rate_vs_base": at(0.8), "win_rate_vs_best": at(0.6)}
    return decide(settings or Gate(), usual | measures, Standing(3, best, base, prompts))


def broken(decision: Decision) -> list[str]:
    return [rule.name for rule in decision.rules if rule.broken]


def test_a_better_round_is_promoted_and_becomes_the_best() -> None:
    decision = decided()
    assert (decision.decision, decision.best_round) == ("promote", 3)
    assert "win rate 60.0% [56.0%, 64.0%] over round 1" in decision.reasons[0]


def test_a_round_that_is_not_surely_better_leaves_the_best_one() -> None:
    decision = decided(win_rate_vs_best=at(0.53))
    assert (decision.decision, decision.best_round) == ("promote", 1)
    assert "round 1 is still the best" in decision.reasons[0]


LIMITS = [
    ("kl", "kl", 2.1, 2.02, "KL to the start is 2.10 nats a token"),
    ("length", "length_ratio", 2.1, 2.02, "2.10 times as long as round 0's"),
    ("short", "finished_length_ratio", 0.1, 0.18, "0.10 times as long"),
    ("repetition", "repetition_rise", 0.4, 0.32, "repeat themselves rose by 40.0%"),
    ("unfinished", "stop_fall", 0.4, 0.32, "end by themselves fell by 40.0%"),
    ("distinct", "distinct_ratio", 0.3, 0.38, "0.30 times as many different pairs of words"),
]


@pytest.mark.parametrize(("rule", "measure", "beyond", "unsure", "said"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_limit_pauses_the_run_once_it_is_surely_passed(
    rule: str, measure: str, beyond: float, unsure: float, said: str
) -> None:
    decision = decided(**{measure: at(beyond)})
    assert decision.decision == "pause" and broken(decision) == [rule]
    assert said in decision.reasons[0] and "95 % interval" in decision.reasons[0]
    # What is suspect becomes the best round of none.
    assert decision.best_round == 1
    assert decided(**{measure: at(unsure)}).decision == "promote"
    assert decided(**{measure: None}).decision == "promote"


def test_a_rule_can_be_taken_away_and_an_alarm_can_do_other_things() -> None:
    assert decided(Gate(max_kl=None), kl=at(9.0)).decision == "promote"
    assert decided(Gate(alarm="roll_back"), kl=at(9.0)).decision == "roll_back"
    assert decided(Gate(alarm="stop"), kl=at(9.0)).decision == "stop"


def test_what_only_the_training_labeller_likes_pauses_the_run() -> None:
    hacked = decided(second_win_rate_vs_base=at(0.38), gap=at(0.42))
    assert hacked.decision == "pause" and broken(hacked) == ["second", "gap"]
    assert "by the second labeller the win rate is 38.0%" in hacked.reasons[0]
    flat = decided(second_win_rate_vs_base=at(0.5), gap=at(0.3))
    assert broken(flat) == ["gap"]
    # A second labeller that sees some of the gain agrees.
    assert decided(second_win_rate_vs_base=at(0.56), gap=at(0.4)).decision == "promote"
    # A training labeller that sees none has not been hacked; rolling back is another rule's.
    worse = decided(win_rate_vs_base=at(0.5), second_win_rate_vs_base=at(0.38), gap=at(0.12))
    assert worse.decision == "promote"


def test_going_on_past_the_peak_pauses_the_run() -> None:
    peak = {"second_win_rate_vs_base": at(0.6), "second_win_rate_vs_best": at(0.36)}
    assert broken(decided(**peak)) == ["second_best"]
    assert decided(**(peak | {"win_rate_vs_best": at(0.5)})).decision == "promote"


def test_a_round_that_the_second_labeller_likes_less_is_not_the_best() -> None:
    decision = decided(second_win_rate_vs_best=at(0.45, 0.04))
    assert (decision.decision, decision.best_round) == ("promote", 1)


def test_a_gain_by_length_alone_pauses_the_run_unless_the_second_labeller_sees_it() -> None:
    longer = {"length_ratio": at(1.5), "length_share": at(0.95)}
    assert broken(decided(**longer)) == ["length_share"]
    assert decided(**(longer | {"length_ratio": at(1.42)})).decision == "promote"
    assert decided(**(longer | {"length_share": at(0.82)})).decision == "promote"
    assert decided(**(longer | {"second_win_rate_vs_base": at(0.6)})).decision == "promote"


def test_a_round_that_is_surely_worse_than_the_best_is_rolled_back() -> None:
    decision = decided(win_rate_vs_best=at(0.4))
    assert (decision.decision, decision.best_round) == ("roll_back", 1)
    assert "win rate 40.0% [36.0%, 44.0%] over round 1" in decision.reasons[0]
    assert decided(win_rate_vs_best=at(0.42)).decision == "promote"
    assert decided(Gate(roll_back_below=None), win_rate_vs_best=at(0.2)).decision == "promote"


def test_rounds_that_surely_gain_nothing_end_the_run() -> None:
    decision = decided(win_rate_vs_best=at(0.5), win_rate_since_best=at(0.5))
    assert (decision.decision, decision.best_round) == ("stop", 1)
    assert "no gain in 3 rounds" in decision.reasons[0] and "below 55%" in decision.reasons[0]
    # With few prompts nobody can tell.
    assert decided(win_rate_vs_best=at(0.5), win_rate_since_best=at(0.5, 0.1)).decision == "promote"
    assert decided(Gate(patience=None), win_rate_since_best=at(0.5)).decision == "promote"


def test_too_few_prompts_judge_nothing() -> None:
    decision = decided(prompts=19, kl=at(9.0))
    assert decision.decision == "promote" and "19 held-out prompts are too few" in decision.reasons[0]
    assert decided(prompts=20, kl=at(9.0)).decision == "pause"


def test_without_any_measure_the_newest_round_is_the_best() -> None:
    decision = decide(Gate(), {}, Standing(3, 1, 0, 100))
    assert (decision.decision, decision.best_round, decision.rules) == ("promote", 3, ())


def test_a_round_that_the_run_went_on_from_is_promoted_with_the_reason() -> None:
    decision = decide(Gate(), {"kl": at(9.0)}, Standing(3, 1, 0, 100, overtaken=True))
    assert (decision.decision, decision.best_round) == ("promote", 1)
    assert decision.reasons[-1] == "pause, but round 4 had begun before this round had a gate"


def test_numbers_of_a_decision_survive_the_file() -> None:
    decision = decided(kl=at(9.0))
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
