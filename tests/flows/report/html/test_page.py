"""The page shows what there is, as text and nothing else, and needs nothing from outside."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.report.charts import histogram
from flows.report.facts import (
    DiscriminatorFacts,
    GateFacts,
    LabelFacts,
    PairFacts,
    RoundFacts,
    StageFacts,
    TrainingFacts,
    cell,
    estimate,
)
from flows.report.findings.columns import COLUMNS
from flows.report.findings.verdicts import gate_limits
from flows.report.html import RunFacts, Sample, Samples, render_report
from flows.report.html.tables import differences_table, rounded_time
from flows.report.html.training import BOTH_MAY_FALL, training_panels
from pipeline.config import Gate
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.step_log import StepReport
from tests.support.browser import CHROMIUM, Browser

EVIL = "</script><script>alert(1)</script> [x](javascript:alert(2))"
STEP = StepReport(1, 3, 0.5, 1e-3, 1.0, 0.1, 0.75, -1.0, -2.0, 100, 50, 0.0, 0.1, 1000.0, -0.125, -0.25)
LIMITS = tuple(gate_limits(Gate()))
ORDER = "document.getElementById('order')"
DATA = re.compile(r'<script type="application/json" id="responses">(.*?)</script>', re.S)


def bare(round_: int, **metrics: Any) -> RoundFacts:
    """A round of which nothing but ``metrics`` is known."""
    keys = (
        "reward",
        "reward_greedy",
        "kl_to_start",
        "kl_to_previous",
        "response_length",
        "stop_rate",
        "sampler_trainer_gap",
    )
    known = {key: metrics.get(key) for key in keys}
    wins = {name: estimate(metrics, name) for name in ("win_rate_vs_start", "win_rate_vs_previous")}
    return RoundFacts(
        round_, metrics, **known, **wins, pairs=None, labels=(), discriminator=None, training=None, gate=None,
        stages=(), comparisons=(),
    )  # fmt: skip


def full(round_: int) -> RoundFacts:
    """A round that has everything."""
    wins = {"win_rate_vs_start": 0.5 + round_ / 10, "win_rate_vs_start_ci": [0.4, 0.9]}
    measures = {"gap": 0.1 * round_, "gap_ci": [0.0, 0.3], "reward_length_slope": 0.01, "lc_win_rate_vs_start": 0.55}
    facts = bare(
        round_, reward=float(round_), kl_to_start=0.1 * round_, response_length=20.0, repetition_rate=0.1, **wins
    )
    counts = histogram([1.0, 2.0, 3.0])
    causes = {"no_answer": 1}
    labels = LabelFacts(
        "labels",
        1,
        causes,
        40,
        0.25,
        30,
        cost=1.5,
        orders_that_disagree=0.2,
        disagreement=0.3,
        said_by_cause={"no_answer": EVIL},
        broken=1234,
    )
    if round_ == 0:
        return facts
    return replace(
        facts,
        pairs=PairFacts("pair", 12, 10, {"tie": 3}, counts, 2.0, counts),
        labels=(labels,),
        discriminator=DiscriminatorFacts(20, 8, 4, 0.75, 0.7, 0.65, "accuracy too low"),
        training=TrainingFacts(
            {"loss": 0.5}, tuple(replace(STEP, step=n) for n in (1, 2, 3)), passes=PassTokens(600, 900, 1200).line(None)
        ),
        gate=GateFacts("pause", ("the length grows",), 1, measures),
        stages=(StageFacts("policy", 12, 7200.0, 7200, 1.0, {"process": 3 << 30, "device": 5 << 30}),),
    )  # fmt: skip


def run(*rounds: RoundFacts, name: str = "run", samples: tuple[Sample, ...] = (), **settings: str) -> RunFacts:
    config, known, versions = "name: run\n", frozenset(settings), {"torch": "2.13"}
    return RunFacts(name, config, settings, known, LIMITS, "iterative", rounds, 3, versions, "", Samples(samples, 9))


def test_accuracy_is_drawn_against_kl_where_pairs_are_held_out() -> None:
    rounds = [replace(bare(n, kl_to_start=0.1 * n), metrics={"held_out_accuracy": 0.5 + n / 10}) for n in range(3)]
    html = render_report([run(*rounds, name="one"), run(*rounds[:2], name="other")])
    assert "<b>Accuracy over KL</b>" in html and "<b>Reward over KL</b>" not in html
    assert "<b>Accuracy over KL</b>" not in render_report([run(*rounds[:1])])


def summed(*parts: dict[str, float] | None) -> RoundFacts:
    """A round whose steps had these parts of a sum."""
    steps = tuple(replace(STEP, step=n, parts=of_step) for n, of_step in enumerate(parts, 1))
    return replace(full(1), training=TrainingFacts({"loss": 0.5}, steps))


def test_each_part_of_a_sum_has_a_line_of_its_own_with_its_name() -> None:
    sums = ({"dpo": 0.7, "sft_2": 3.0}, {"dpo": 0.6, "sft_2": 2.5}, {"dpo": 0.4, "sft_2": 2.0})
    (panel,) = [panel for panel in training_panels([run(full(0), summed(*sums))]) if panel.title == "Parts of the loss"]
    legend = re.findall(r"</svg>([^<]+)</span>", panel.figure)
    assert legend == ["dpo", "sft_2"]
    drawn = re.findall(r'data-y="([^"]*)"', panel.figure)
    assert drawn == ["0.7 0.6 0.4", "3 2.5 2"]
    both = training_panels([run(full(0), summed(*sums), name="one"), run(full(0), full(1), name="plain")])
    assert "Parts of the loss" in {panel.title for panel in both}
    assert "Parts of the loss" not in {panel.title for panel in training_panels([run(full(0), summed(None, None))])}


def test_sizes_of_log_ratios_and_targets_are_drawn_where_a_loss_has_targets() -> None:
    steps = tuple(replace(STEP, step=n, ratio_per_token=0.1 * n, target_per_token=8.0) for n in (1, 2))
    panels = training_panels([run(full(0), replace(full(1), training=TrainingFacts({"loss": 0.5}, steps)))])
    assert "Size of log-ratios and targets" in {panel.title for panel in panels}


def test_what_a_model_wrote_is_text_and_nothing_else() -> None:
    sample = Sample(EVIL, {0: (EVIL + "\x1b[31m", 1.0), 1: (EVIL, None)})
    html = render_report([run(full(0), full(1), name=EVIL, samples=(sample,), key=EVIL), run(full(0), full(1))])
    assert "<script>alert(1)" not in html
    (found,) = [json.loads(text) for text in DATA.findall(html)]
    assert found["items"][0]["prompt"] == EVIL and "\x1b" not in found["items"][0]["cells"]["0"][0]
    assert found["items"][0]["cells"]["1"] == [EVIL, None]


def test_the_page_needs_nothing_from_outside() -> None:
    html = render_report([run(full(0), full(1), full(2))])
    assert "default-src 'none'" in html[: html.index("<script")]
    assert "<link" not in html and "<script src" not in html and "<img" not in html


def test_everything_that_there_is_has_its_panel() -> None:
    html = render_report([run(full(0), full(1), full(2), a="b")])
    for title in (
        "Reward", "Win rate", "Win rate, length controlled", "KL", "Reward over KL", "Length", "Loss",
        "Change of log-probs", "Margin", "Gradient norm", "Learning rate", "Yield", "Margins", "Dispersion",
        "Discriminator&#39;s accuracy", "Cost of labels", "Time", "Agreement of labels",
        "Gap between the labellers", "Reward paid for length",
    ):  # fmt: skip
        assert f"<b>{title}</b>" in html, title
    text = html[html.index("<body>") :]
    assert "<th>with control tokens</th>" in text and "<td>1,234</td>" in text
    assert BOTH_MAY_FALL in text and text.count("the length grows") == 2 and "gate after round 2: pause" in text
    assert (
        "no: accuracy too low" in text
        and "1 (no_answer 1: &lt;/script" in text
        and "4.0 h" in text
        and "torch 2.13" in text
    )
    assert "<td>3.00</td><td>5.00</td>" in text and "What differs" not in text
    passes = "prompts are shared: 600 tokens in a pass over the data; padded rows would be 2.00 times as many"
    assert f"In training {passes}." in text


def test_what_is_not_there_leaves_no_empty_panel() -> None:
    html = render_report([run(bare(0, reward=1.25, kl_to_start=0.0), bare(1, reward=2.5, kl_to_start=None))])
    text = html[html.index("<body>") :]
    assert re.findall(r"<figcaption><b>(.*?)</b>", text) == ["Reward"]
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == ["Rounds", "Outcome", "Time and memory", "Config and versions"]
    assert "1.250" in text and "<td>–</td>" in text and "slot err greedy" not in text


def test_limits_of_the_gate_are_drawn_where_their_measures_are() -> None:
    measures = {limit.measure: 0.5 for limit in LIMITS}
    gate = GateFacts("promote", (), 1, {**measures, "kl": 0.3, "kl_ci": [0.2, 0.4], "gap_ci": [0.4, 0.6]})
    html = render_report([run(full(0), replace(full(1), gate=gate), replace(full(2), gate=gate))])
    drawn = re.findall(r'<text class="limit"[^>]*>(\w+) ([^<]*)<', html)
    assert {name for name, _ in drawn} == {limit.name for limit in LIMITS}
    # The second round's base already had a KL of 0.2 - 0.3.
    assert ("max_kl", "1.9 ↑") in drawn and ("max_gap", "25%") in drawn and ("roll_back_below", "45%") in drawn
    single = render_report([run(full(0), replace(full(1), gate=gate))])
    assert "<b>Repetition</b>" in single and 'class="c0 interval"' in single


def test_a_round_that_goes_on_behind_the_best_one_is_told_from_the_best() -> None:
    rounds = [replace(full(n), gate=GateFacts("promote", ("no rule is broken",), 1, {})) for n in (1, 2)]
    text = render_report([run(full(0), *rounds)])
    assert '<div class="gate promote"><b>round 1: promote</b>' in text
    assert '<div class="gate accepted"><b>round 2: accepted, not the best</b>' in text
    assert "gate after round 2: accepted, not the best" in text and ".gate.accepted {" in text


def test_labellers_are_compared_where_there_are_two() -> None:
    second = {"second_win_rate_vs_start": 0.5}
    two = [replace(full(n), metrics={**full(n).metrics, **second}) for n in (0, 1)]
    html = render_report([run(*two)])
    assert "Training and second labeller" in html
    assert '<span class="faint">round 1:</span> <b>no sign</b>: the training labeller&#39;s win rate' in html
    assert "Training and second labeller" not in render_report([run(full(0), full(1))])


def test_a_run_that_has_nothing_yet_is_a_small_page() -> None:
    html = render_report([run()])
    assert len(html) < 50_000 and "<figure" not in html[html.index("<body>") :]


def test_several_runs_share_their_panels_and_settings_that_differ_are_told() -> None:
    runs = [run(full(0), full(1), name=name, beta=beta, seed="0") for name, beta in (("one", "0.1"), ("two", "0.5"))]
    text = render_report(runs)
    text = text[text.index("<body>") :]
    assert text.count("<b>Reward</b>") == 1 and "one" in text and "two · vs start" in text
    assert "<td>beta</td><td>0.1</td><td>0.5</td>" in text and "<td>seed</td>" not in text


def test_settings_that_are_defaults_in_both_runs_are_not_told() -> None:
    one = replace(run(full(0), name="one", **{"gate": "None", "link.cap": "2", "n": "4"}), given=frozenset({"n"}))
    other = replace(run(full(0), name="two", **{"gate.max_kl": "2.0", "link.cap": "3", "n": "5"}), given=frozenset())
    table = differences_table([one, other])
    assert table is not None and table.rows == [["gate", "None", "given"], ["n", "4", "5"]]


def test_the_page_stays_small_however_long_the_run() -> None:
    steps = tuple(replace(STEP, step=n) for n in range(1, 20_001))
    rounds = [replace(full(n), training=TrainingFacts({}, steps if n == 1 else ())) for n in range(1, 300)]
    samples = tuple(Sample(f"prompt {n}", {0: ("说" * 1500, 1.0), 299: ("a<" * 700, 2.0)}) for n in range(200))
    html = render_report([run(full(0), *rounds, samples=samples)])
    assert 900_000 < len(html.encode()) <= 1_000_000
    (found,) = [json.loads(text) for text in DATA.findall(html)]
    assert 20 < len(found["items"]) < 200 and found["items"][0]["cells"]["0"][0] == "说" * 1500


def test_the_page_stays_small_however_many_runs() -> None:
    steps = tuple(replace(STEP, step=n) for n in range(1, 2001))
    rounds = [full(0), *(replace(full(n), training=TrainingFacts({}, steps)) for n in (1, 2, 3))]
    html = render_report([run(*rounds, name=f"run {n}", a=str(n)) for n in range(12)])
    assert html.count("<b>Loss</b>") == 1 and len(html.encode()) <= 1_000_000


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed here")
def test_figures_and_samples_are_drawn_in_a_browser(tmp_path: Path) -> None:
    samples = tuple(Sample(f"prompt {n} <b>", {0: (f"before {n}", 1.0), 2: (f"after {n}", 2.0)}) for n in range(30))
    page = tmp_path / "report.html"
    page.write_text(render_report([run(full(0), full(1), full(2), samples=samples)]))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    command += [f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = done.stdout[done.stdout.index("<body>") :]
    assert body.count("<figure") == body.count('<svg class="area"') == body.count('<div class="tip"') > 15
    assert "prompt 0 &lt;b&gt;" in body and "after 19" in body and body.count('class="sample"') == 20
    assert "30 prompts" in body and "round 2, score 2.00" in body


WIDE = "(all => all.every(one => one.scrollWidth <= one.clientWidth))([document.documentElement, document.body])"
SCROLLS = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
AREA = "document.querySelector('#time ~ .plots .area').clientWidth / document.body.clientWidth"
FIRST = "document.querySelector('.sample').innerText"
POINT = """(area => { const box = area.getBoundingClientRect(); area.dispatchEvent(new PointerEvent('pointermove',
{bubbles: true, clientX: box.right - 8, clientY: box.top + 8})); return document.querySelector('.tip').textContent; })
(document.querySelector('.area'))"""


@pytest.mark.whole
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
def test_the_page_fits_a_phone_and_a_wide_window(tmp_path: Path) -> None:
    scores = [(1.0, 2.0), (2.0, 1.5), (3.0, 0.0), (1.0, 1.0)]
    samples = tuple(Sample(f"prompt {n}", {0: ("a", was), 2: ("b", now)}) for n, (was, now) in enumerate(scores))
    page = tmp_path / "report.html"
    page.write_text(render_report([run(full(0), full(1), full(2), samples=samples)]))
    with Browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri(), "Config and versions", "4 prompts", "score +1.00", "score −3.00", "score ±0.00")
        for width in (1280, 390):
            browser.resize(width)
            assert browser.run(WIDE), width
            assert browser.run(AREA) > 0.7, width
        assert browser.run(SCROLLS) >= 2
        assert browser.run(POINT) == "sampled: 2 · round 2"
        for order, first in (("up", "prompt 0"), ("down", "prompt 2"), ("size", "prompt 2")):
            browser.run(f"(o => {{ o.value = '{order}'; o.dispatchEvent(new Event('input')); }})({ORDER})")
            assert first in browser.run(FIRST), order


def test_cells() -> None:
    assert [cell(0.1234, "{:.1%}"), cell(None, "{:.1%}"), cell(2.0, "{:.3f}")] == ["12.3%", "–", "2.000"]
    assert [rounded_time(seconds) for seconds in (5.0, 90.0, 7200.0)] == ["5 s", "1.5 min", "2.0 h"]


def test_headings_are_short_enough_for_a_terminal() -> None:
    assert all(len(line) <= 8 for _, heading, _ in COLUMNS for line in heading.split("\n"))
