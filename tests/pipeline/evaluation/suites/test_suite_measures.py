"""Measures of suites on known answers, and against the published packages."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.config import JudgeScorer
from pipeline.errors import UserError
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.suites.arena import _style, measure_battles
from pipeline.evaluation.suites.ifeval import measure_ifeval, require_checks
from pipeline.evaluation.suites.length_controlled import Gamed, length_controlled
from pipeline.evaluation.suites.result import SuiteResult, suite_change
from pipeline.evaluation.suites.reward_bench import reward_bench_accuracies
from pipeline.types.instructions import Instructions
from reward_models.judge.replies import ChatReply
from reward_models.judge.verdicts import read_verdict
from tests.support.suite_files import IFEVAL

ROWS = [
    Instructions(str(row["key"]), row["prompt"], tuple(row["instruction_id_list"]), tuple(row["kwargs"]))
    for row in IFEVAL
]
RESPONSES = ["No comma here", "all lower, but short", "Sure:\nfine, says it\nbye", '"quoted"']


def mean(result: SuiteResult, name: str) -> float:
    found = result.metrics[name]
    return found.mean if isinstance(found, Interval) else found


def test_instructions_that_are_followed() -> None:
    found = measure_ifeval(ROWS, RESPONSES)
    # Kept: no comma; lowercase but not 300 words; under 500 words but a comma; quoted.
    assert [mean(found, f"{level}_strict") for level in ("prompt", "instruction")] == [2 / 4, 4 / 6]
    # Without its first and last lines the third answer is still one with a comma.
    assert [mean(found, f"{level}_loose") for level in ("prompt", "instruction")] == [2 / 4, 4 / 6]
    assert found.items == {"1000": 1.0, "1001": 0.0, "1005": 0.0, "1012": 1.0}
    loose = measure_ifeval(ROWS[2:3], ["Sure, here:\nfine it says"])
    assert (mean(loose, "prompt_strict"), mean(loose, "prompt_loose")) == (0.0, 1.0)


def test_instructions_are_told_apart_by_family() -> None:
    found = measure_ifeval(ROWS, RESPONSES)
    # Punctuation: kept, then missed; lengths: missed, then kept.
    expected = {"punctuation": 1 / 2, "length_constraints": 1 / 2, "change_case": 1.0, "startend": 1.0}
    told = {f"instruction_strict_of_{family}": share for family, share in expected.items()}
    assert {name: mean(found, name) for name in found.metrics if "_of_" in name} == told
    assert not any("_of_" in name for name in measure_ifeval(ROWS[:1], RESPONSES[:1]).metrics)


def test_accuracies_of_instructions_are_the_harness_s_own() -> None:
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results

    theirs = [process_results(row.document, [text]) for row, text in zip(ROWS, RESPONSES, strict=True)]
    ours = measure_ifeval(ROWS, RESPONSES)
    for kind in ("strict", "loose"):
        prompts = [one[f"prompt_level_{kind}_acc"] for one in theirs]
        assert mean(ours, f"prompt_{kind}") == sum(prompts) / len(prompts)
        expected = agg_inst_level_acc([one[f"inst_level_{kind}_acc"] for one in theirs])
        assert mean(ours, f"instruction_{kind}") == pytest.approx(expected, abs=1e-12)


def test_an_unknown_check_names_its_row() -> None:
    with pytest.raises(UserError, match=r"row 7: 'punctuation:no_coma' is no check; known: change_case"):
        require_checks([Instructions("7", "p", ("punctuation:no_coma",), ({},))], "evaluation.suites.0")


# The package in a process of its own: it sets scikit-learn's options, and warns of what it uses.
PUBLISHED = """
import json, sys
import pandas
import alpaca_eval.metrics.glm_winrate as published
published.hf_hub_download = lambda **given: sys.argv[2]
annotations = pandas.DataFrame(json.load(open(sys.argv[1])))
found = [
    published.get_length_controlled_winrate(annotations.copy(), glm_name=name, save_weights_dir=None)
    for name in ("length_controlled_v1", "length_controlled_minimal")
]
print(json.dumps([[one["length_controlled_winrate"], one["lc_standard_error"], one["win_rate"]] for one in found]))
"""


def annotated(folder: Path, count: int = 60) -> tuple[list[dict[str, Any]], Gamed]:
    """Annotations whose longer answers win, and published rows, in the files of the package."""
    draw = random.Random(3)
    difficulty = [draw.gauss(0, 1) for _ in range(count)]
    annotations = []
    for index in range(count):
        theirs, ours = draw.randrange(40, 400), draw.randrange(40, 500)
        chance = 1 / (1 + np.exp(-(ours - theirs) / 120 + difficulty[index]))
        preference = 1.5 if index % 9 == 0 else 1 + min(max(chance + draw.gauss(0, 0.1), 0.01), 0.99)
        annotations.append(
            {
                "index": index, "output_1": "x" * theirs, "output_2": "y" * ours, "generator_1": "baseline",
                "generator_2": "ours", "annotator": "judge", "preference": float(preference),
            }
        )  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(annotations))
    gamed = [
        (f"m{model}", draw.random(), index, draw.gauss(0, 1), difficulty[index])
        for model in (0, 1) for index in range(count)
    ]  # fmt: skip
    with (folder / "gamed.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = "model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"
        writer.writerow(names)
        writer.writerows([*row, False] for row in gamed)
    columns = [np.array([row[place] for row in gamed], dtype=np.float64) for place in (1, 3, 4)]
    return annotations, Gamed(*columns, np.array(difficulty))


def test_the_length_controlled_win_rate_is_the_package_s_own(tmp_path: Path) -> None:
    annotations, gamed = annotated(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", PUBLISHED, tmp_path / "annotations.json", tmp_path / "gamed.csv"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=600)
    whole, minimal = json.loads(done.stdout.splitlines()[-1])
    wins = [row["preference"] - 1 for row in annotations]
    lengths = [[len(row[name]) for row in annotations] for name in ("output_1", "output_2")]
    ours = length_controlled(wins, *lengths, gamed=gamed)
    assert 100 * ours.rate.mean == pytest.approx(whole[0], abs=1e-6)
    assert 100 * ours.standard_error == pytest.approx(whole[1], abs=1e-6)
    plain = length_controlled(wins, *lengths)
    assert 100 * plain.rate.mean == pytest.approx(minimal[0], abs=1e-6)
    # Longer answers won, and the policy's are longer: at equal length it wins less often than it did.
    assert plain.rate.mean < np.mean(wins) - 0.01
    assert plain.rate.low < plain.rate.mean < plain.rate.high


def test_few_answers_have_no_length_controlled_win_rate() -> None:
    with pytest.raises(UserError, match="4 answers have labels; the published regression needs 5"):
        length_controlled([1.0, 0.0, 1.0, 0.0, None], [1, 2, 3, 4, 5], [2, 2, 2, 2, 2])


ANSWERS = {f"q{n}": ("word " * (4 + n % 7) + "# head\n- point\n" * (n % 3), "word " * (5 + n % 4)) for n in range(40)}
VERDICTS = {
    key: (draw.choice((0.0, 0.25, 0.5, 0.75, 1.0)), draw.choice((0.25, 0.5, 0.75, 1.0)))
    for draw in [random.Random(5)] for key in ANSWERS
}  # fmt: skip


def test_a_strong_verdict_counts_several_battles() -> None:
    found = measure_battles({"a": (1.0, 0.75), "b": (0.5, 0.0)}, {"a": ("x", "y"), "b": ("x", "y")}, 3, 0)
    # Three wins and one; half a win and three losses: 4.5 of 8.
    assert mean(found, "win_rate") == 4.5 / 8
    assert mean(found, "style_controlled_win_rate") == pytest.approx(4.5 / 8, abs=1e-6)
    assert found.facts == {"questions": 2, "strong_verdicts": 2}


def test_battles_are_told_apart_by_category() -> None:
    verdicts = {"a": (1.0, 0.75), "b": (0.5, 0.0), "c": (0.25, 0.25)}
    styles, categories = dict.fromkeys(verdicts, ("x", "y")), {"a": "maths", "b": "maths", "c": "to write"}
    found = measure_battles(verdicts, styles, 3, 0, categories)
    assert mean(found, "win_rate") == pytest.approx(4.5 / 10)
    assert (mean(found, "win_rate_of_maths"), mean(found, "win_rate_of_to_write")) == (pytest.approx(4.5 / 8), 0.0)
    # One question that was lost proves little.
    lost = found.metrics["win_rate_of_to_write"]
    assert isinstance(lost, Interval) and lost.high > 0.5
    assert [*measure_battles(verdicts, styles, 3, 0, dict.fromkeys(verdicts, "maths")).metrics] == [
        "win_rate", "style_controlled_win_rate",
    ]  # fmt: skip


def test_the_win_rate_at_equal_style_is_that_of_a_logistic_regression() -> None:
    found = measure_battles(VERDICTS, ANSWERS, 3, 0)
    rows, outcomes, weights = [], [], []
    for key, both in VERDICTS.items():
        for verdict in both:
            for _ in range(3 if verdict in (0.0, 1.0) else 1):
                win = 0.5 if verdict == 0.5 else float(verdict > 0.5)
                rows += [_style(*ANSWERS[key])] * 2
                outcomes += [1, 0]
                weights += [win, 1 - win]
    features = np.array(rows)
    scaled = features[:, :3] - features[::2, :3].mean(axis=0)
    scaled /= features[::2, :3].std(axis=0, ddof=1)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(scaled, outcomes, sample_weight=weights)
    assert not np.any(features[:, 3]), "no bold text, so there is nothing to control for"
    expected = 1 / (1 + np.exp(-model.intercept_[0]))
    assert mean(found, "style_controlled_win_rate") == pytest.approx(expected, abs=1e-5)
    assert abs(expected - mean(found, "win_rate")) > 5e-4


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("My own answer.\n[[A>>B]]", 1.0), ("[[A>B]]", 0.75), ("tie: [[A=B]].", 0.5), ("[[b>a]]", 0.25),
        ("first [[A>B]], on reflection [[B>>A]]", 0.0), ("[[A<<B]]", 0.0), ("A>B", None), ("[[A>A]]", None),
    ],
)  # fmt: skip
def test_graded_verdicts(said: str, value: float | None) -> None:
    judge = JudgeScorer.model_validate(
        {"server": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "verdict": "graded"}
    )
    assert read_verdict(ChatReply(said, ()), judge).value == value


def test_reward_bench_weighs_subsets_and_sections_as_published() -> None:
    subsets = [
        "alpacaeval-easy",
        "alpacaeval-easy",
        "mt-bench-easy",
        "math-prm",
        "hep-go",
        "hep-go",
        "hep-go",
        "hep-go",
    ]
    right = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, None]
    found = {
        name: value.mean
        for name, value in reward_bench_accuracies(subsets, right).items()
        if isinstance(value, Interval)
    }
    chat, reasoning = (0.5 * 100 + 28) / 128, (984 + 164 / 3) / (984 + 164)
    assert found["chat"] == pytest.approx(chat) and found["reasoning"] == pytest.approx(reasoning)
    assert found["score"] == pytest.approx((chat + reasoning) / 2)
    assert found["accuracy"] == pytest.approx(4 / 7) and found["subset_hep_go"] == pytest.approx(1 / 3)
    other = reward_bench_accuracies(["mine", "mine"], [1.0, 0.0])
    assert other["score"] == other["accuracy"] == rate_interval([1.0, 0.0])


def test_a_change_is_measured_row_by_row_where_rows_are_the_same() -> None:
    before = SuiteResult(
        "ifeval", "m", {"m": rate_interval([1.0] * 10 + [0.0] * 10)}, {str(n): float(n < 10) for n in range(20)}
    )
    after = SuiteResult(
        "ifeval", "m", {"m": rate_interval([1.0] * 8 + [0.0] * 12)}, {str(n): float(n < 8) for n in range(20)}
    )
    change = suite_change(after, before)
    assert change is not None and change.mean == pytest.approx(-0.1)
    apart = suite_change(SuiteResult("x", "m", after.metrics), SuiteResult("x", "m", before.metrics))
    assert apart is not None and apart.mean == pytest.approx(-0.1) and apart.low < change.low < change.high < apart.high
    worse = SuiteResult("lm_eval", "p", {"p": Interval(12.0, 11.0, 13.0)}, falls=True)
    better = SuiteResult("lm_eval", "p", {"p": Interval(10.0, 9.0, 12.0)}, falls=True)
    gained = suite_change(better, worse)
    assert gained is not None and gained.mean == 2.0
    assert (gained.low, gained.high) == (pytest.approx(2 - 5**0.5), pytest.approx(2 + 2**0.5))
