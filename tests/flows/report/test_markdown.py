"""A round's page, its comparisons and the table of rounds: all facts are there, and model text does nothing."""

from dataclasses import replace
from typing import Any

from flows.report.charts import EMPTY, Histogram
from flows.report.facts import (
    DiscriminatorFacts,
    Estimate,
    GateFacts,
    LabelFacts,
    PairFacts,
    RoundFacts,
    SampleComparison,
    StageFacts,
    TrainingFacts,
)
from flows.report.markdown import comparisons_page, histogram_line, report_link, round_page, rounds_rows
from pipeline.training.step_log import StepReport

STEP = StepReport(1, 1, 0.69, 1e-3, 1.0, 0.1, 0.5, -2.0, -2.5, 100, 50, 0.0, 1.0, 100.0)
START = RoundFacts(
    round=0,
    metrics={"reward": 0.25, "win_rate_vs_start": 0.5, "win_rate_vs_start_ci": [0.5, 0.5]},
    reward=0.25,
    reward_greedy=None,
    win_rate_vs_start=Estimate(0.5, 0.5, 0.5),
    win_rate_vs_previous=None,
    kl_to_start=0.0,
    kl_to_previous=None,
    response_length=20.0,
    stop_rate=1.0,
    sampler_trainer_gap=1e-6,
    pairs=None,
    labels=(),
    discriminator=None,
    training=None,
    gate=None,
    stages=(StageFacts("evaluation", 16, 2.0, None, 8.0, {}),),
    comparisons=(),
)
ROUND = replace(
    START,
    round=3,
    metrics={"reward": 0.75, "win_rate_vs_start": 0.625, "win_rate_vs_start_ci": [0.438, 0.812]},
    reward=0.75,
    win_rate_vs_start=Estimate(0.625, 0.438, 0.812),
    win_rate_vs_previous=Estimate(0.55),
    kl_to_start=0.125,
    kl_to_previous=0.0625,
    pairs=PairFacts("pair", 1200, 1000, {"tie": 31, "near_duplicate": 4}, Histogram((0, 1, 2), (1, 8)), 1.25, EMPTY),
    labels=(
        LabelFacts(
            "labels", 2, {"time_out": 2}, 500, 0.25, 375, 1, 9000, 700, 0.0123, 0.08, None, {"time_out": "*busy*"}, 7
        ),
    ),
    discriminator=DiscriminatorFacts(256, 64, 192, 0.71, 0.69, 0.66, "accuracy below 0.75"),
    training=TrainingFacts({"first_loss": 0.6931, "loss": 0.41, "margin": 0.9, "accuracy": 0.82}, (STEP,)),
    gate=GateFacts("roll_back", ("reward rises while the second labeller's falls",), 2, {}),
    stages=(StageFacts("samples", 400, 75.0, 30000, 400.0, {"process": 3 << 30}), *START.stages),
    comparisons=(SampleComparison("Who?", "a", 1.0, "b", 2.5), SampleComparison("Where?", "c", None, "d", None)),
)


def test_the_page_tells_every_fact_of_the_round() -> None:
    page = round_page("my-run", 5, ROUND, [START])
    for said in [
        "round 3 of 5",
        "## Gate: 🔵 roll back",
        "reward rises while the second labeller\\'s falls",
        "best round is 2",
        "| reward, sampled | 0.750 | 0.250 |",
        "| wins against the start | 62.5% (44% to 81%) | – |",
        "| wins against the round before | 55.0% | – |",
        "| KL to the start, nats per token | 0.1250 | 0.0000 |",
        "| KL to the round before, nats per token | 0.0625 | – |",
        "| length, tokens | 20.0 | 20.0 |",
        "| ended by themselves | 100.0% | 100.0% |",
        "| engine–trainer gap, nats per token | 1.0e-06 | 1.0e-06 |",
        "Trained on 1,200 pairs, 1,000 of them from this round.",
        "| tie | 31 |",
        "| near duplicate | 4 |",
        "mean 1.25, distribution `0 ▂█ 2`",
        "| loss, first step | 0.6931 |",
        "| loss, at the end | 0.4100 |",
        "| pairs ranked correctly | 82.0% |",
        "| labels | 500 | 25% | 2 (time\\_out 2: \\*busy\\*) | 375 | 9,000 + 700 | 0.0123 | 8% | 7 |",
        "| accuracy on held-out gold | 71.0% |",
        "It does not label: accuracy below 0\\.75",
        "| samples | 400 | 1:15 | 30,000 | 400 tokens | process 3.00 GiB |",
        "| **all** |  | 1:17 |",
    ]:
        assert said in page, said


def test_what_a_round_does_not_have_is_left_out() -> None:
    page = round_page("my-run", 5, START)
    assert "## On held-out prompts" in page and "## Stages" in page
    for heading in ("Gate", "Pairs", "Training", "Labels", "Discriminator"):
        assert f"## {heading}" not in page
    assert "reward, greedy" not in page
    bare: dict[str, Any] = dict.fromkeys(("reward", "win_rate_vs_start", "kl_to_start", "stop_rate"))
    unmeasured = replace(START, metrics={}, response_length=None, sampler_trainer_gap=None, stages=(), **bare)
    assert "On held-out prompts" not in round_page("my-run", 5, unmeasured)


def test_the_accuracy_of_an_offline_round_has_its_interval_in_page_and_table() -> None:
    known = replace(ROUND, metrics={"held_out_accuracy": 0.7, "held_out_accuracy_ci": [0.61, 0.78]})
    assert "| held-out pairs ranked as labelled | 70.0% (61% to 78%) |" in round_page("my-run", 5, known)
    assert rounds_rows([known])[0]["held-out accuracy"] == "70.0% (61% to 78%)"


def test_the_table_has_a_row_a_round_and_the_columns_that_some_round_has() -> None:
    rows = rounds_rows([START, ROUND])
    assert [row["round"] for row in rows] == ["0", "3"]
    assert rows[1]["wins vs start"] == "62.5% (44% to 81%)" and rows[1]["pairs"] == "1,200"
    assert (rows[0]["gate"], rows[1]["gate"]) == ("–", "🔵 roll back") and rows[1]["label cost"] == "0.0123"
    assert rows[0].keys() == rows[1].keys() and "slot err greedy" not in rows[0]
    assert "gate" not in rounds_rows([START])[0] and "label cost" not in rounds_rows([START])[0]


def test_comparisons_show_prompt_both_responses_and_scores() -> None:
    page = comparisons_page("my-run", ROUND)
    assert "## 1: score 1.000 → 2.500" in page and "```\nWho?\n```" in page
    assert "**before**, score 1.000\n\n```\na\n```" in page and "**after**, score 2.500\n\n```\nb\n```" in page
    assert "## 2: score – → –" in page


def test_model_text_stays_inside_its_block() -> None:
    attack = "```\n# owned\n<script>alert(1)</script> ![x](http://evil/x.png)"
    page = comparisons_page("my-run", replace(ROUND, comparisons=(SampleComparison(attack, attack, 0.0, "ok", 1.0),)))
    assert page.count("````\n```\n# owned") == 2
    assert "x" * 2001 not in comparisons_page(
        "r", replace(ROUND, comparisons=(SampleComparison("x" * 9999, "", 0, "", 0),))
    )


def test_a_gate_s_reasons_and_names_are_escaped() -> None:
    facts = replace(ROUND, gate=GateFacts("pause", ("<img src=x> | [a](b)",), None, {}))
    assert "\\<img src\\=x\\> \\| \\[a\\]\\(b\\)" in round_page("my-run", 5, facts)


def test_bars_of_a_histogram() -> None:
    assert histogram_line(EMPTY) == "–"
    assert histogram_line(Histogram((0.0, 1.0, 2.0, 3.0), (4, 0, 2))) == "0 █ ▅ 3"


def test_the_report_s_address_can_be_copied(tmp_path: Any) -> None:
    file = tmp_path / "my run" / "report.html"
    assert report_link(file).count(file.as_uri()) == 2 and "my%20run" in report_link(file)
