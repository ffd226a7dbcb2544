"""A round in a line."""

from dataclasses import replace

from flows.report.facts import GateFacts
from flows.report.findings.round_line import round_line
from tests.flows.report.html.test_page import bare


def test_the_line_tells_reward_wins_and_gate() -> None:
    wins = {"win_rate_vs_start": 0.625, "win_rate_vs_start_ci": [0.5, 0.75]}
    facts = replace(bare(2, reward=1.25, held_out_accuracy=0.7, **wins), gate=GateFacts("promote", (), 1, {}))
    assert round_line(facts) == (
        "round 2: reward 1.250, wins over the start 62.5% [50.0%, 75.0%], gate: accepted, not the best"
    )
    assert round_line(bare(0, reward=1.25, **wins)) == "round 0: reward 1.250"


def test_without_a_labeller_it_tells_accuracy() -> None:
    facts = bare(1, held_out_accuracy=0.7, held_out_accuracy_ci=[0.6, 0.8])
    assert round_line(facts) == "round 1: held-out accuracy 70.0% [60.0%, 80.0%]"
    assert round_line(bare(1)) == "round 1: evaluated"
