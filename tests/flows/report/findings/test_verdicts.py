"""A decision has words, and every limit of the gate is known to the report."""

from dataclasses import replace

from flows.report.facts import GateFacts
from flows.report.findings.verdicts import SIGNS, STYLES, gate_limits, verdict_kind, verdict_words
from flows.report.markdown import round_page, rounds_rows
from pipeline.config import Gate
from tests.flows.report.test_markdown import ROUND


def test_words_tell_the_best_round_from_one_that_only_goes_on() -> None:
    assert verdict_words("promote", 2, 2) == verdict_words("promote", 2, None) == "promote"
    assert verdict_words("promote", 2, 1) == "accepted, not the best"
    assert verdict_words("roll_back", 2, 1) == "roll back"
    assert {verdict_kind(one, 2, 1) for one in ("promote", "stop", "pause", "roll_back")} < {*STYLES}
    assert {*STYLES} == {*SIGNS} and STYLES["accepted"] != STYLES["promote"] and SIGNS["accepted"] != SIGNS["promote"]


def test_prefects_page_and_table_have_the_words_and_a_sign() -> None:
    shown = replace(ROUND, gate=GateFacts("promote", ("no rule is broken",), 1, {}))
    assert "## Gate: 🟡 accepted, not the best" in round_page("run", 3, shown).replace("\\", "")
    assert rounds_rows([shown])[0]["gate"] == "🟡 accepted, not the best"


def test_every_limit_is_known_and_switched_off_ones_are_not() -> None:
    named = {limit.name for limit in gate_limits(Gate())}
    numbers = {name for name, field in Gate.model_fields.items() if "float" in str(field.annotation)}
    assert named == numbers
    fall, gain = (
        next(limit for limit in gate_limits(Gate()) if limit.name == name) for name in ("max_reward_fall", "min_gain")
    )
    assert (fall.measure, fall.value) == ("reward_change_vs_best", 0.0) and gain.value == 0.55
    off = Gate(max_length_share=None, patience=None, max_reward_fall=None, max_kl=None)
    assert named - {limit.name for limit in gate_limits(off)} == {
        "max_length_share",
        "min_longer",
        "min_gain",
        "max_reward_fall",
        "max_kl",
    }
