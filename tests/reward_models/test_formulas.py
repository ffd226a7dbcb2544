"""Formulas are compared by what they mean, and no response, however hostile, holds up the run or gains by it."""

import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import MathScorer
from pipeline.errors import RunError, UserError
from pipeline.types import Group, Message, Prompt, Response
from reward_models import formulas
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.formulas import MathReward, Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(seconds=20) as made:
        yield made


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        (r"\frac{1}{2}", r"The answer is $\frac{2}{4}$.", r"\boxed{\frac{1}{3}}"),
        ("1/2", r"so \boxed{0.5}", "so it is 1/3"),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", r"\boxed{\sqrt{2}}"),
        (r"x^2+2x+1", r"\boxed{(x+1)^2}", r"\boxed{(x+2)^2}"),
        (r"\{1,2,3\}", r"\boxed{\{3, 2, 1\}}", r"\boxed{\{1, 2\}}"),
        ("(1,2]", r"\boxed{(1, 2]}", r"\boxed{[1, 2]}"),
        (r"(-\infty,1)\cup(2,\infty)", r"$(-\infty, 1) \cup (2, \infty)$", r"$(-\infty, 1] \cup (2, \infty)$"),
        ("(3,4)", r"\boxed{(3, 4)}", r"\boxed{(4, 3)}"),
        (r"50\%", "the answer is 50 percent", "the answer is 5%"),
        ("50%", r"\boxed{\frac{1}{2}}", r"\boxed{0.05}"),
        (r"5\text{ cm}", r"\boxed{5}", r"\boxed{4\text{ cm}}"),
        ("12 apples", "She has 12 apples.", "She has 11 apples."),
        (r"\$18", "He makes $18 a day.", r"\boxed{\$17}"),
        ("x=5", r"\boxed{5}", r"\boxed{x = 6}"),
        ("3 + 4 = 7\n#### 7", "3 plus 4\n#### 7", "7\n#### 8"),
        (r"We get $x$: \boxed{1,234}", "it costs 1234 dollars", "it costs 1235 dollars"),
        ("42", r"First 40, then \boxed{42}, not 41.", r"42 is not \boxed{41}"),
        # Several answers are no answer.
        ("2", r"\boxed{2}", r"\boxed{1}, \boxed{2}, \boxed{3}"),
        ("-5", "the answer is -5", "the answer is 5"),
    ],
)
def test_an_answer_is_right_by_what_it_means(verifier: Verifier, wanted: str, right: str, wrong: str) -> None:
    assert verifier.can_read(wanted)
    assert (verifier.same(wanted, right), verifier.same(wanted, wrong)) == (True, False)


@pytest.mark.parametrize(
    "text", ["", "no idea", r"\boxed{", r"\boxed{}", "\ud800", "\x00", r"\frac{" * 3000, "{" * 5000]
)
def test_garbage_is_wrong(verifier: Verifier, text: str) -> None:
    assert not verifier.same("5", text)
    assert verifier.same("5", "5")


@pytest.mark.parametrize("wanted", ["{", r"\frac{", "²"])
def test_answers_that_cannot_be_read(verifier: Verifier, wanted: str) -> None:
    assert not verifier.can_read(wanted)


# Each would run for hours, or fill the memory.
HOSTILE = (r"\boxed{9^{9^{9^{9}}}}", r"\boxed{(10^{10})!}", r"\boxed{\sum_{k=1}^{10^{12}} \sin(k)^{k}}")


@pytest.mark.parametrize("text", [HOSTILE[0], *(pytest.param(text, marks=pytest.mark.whole) for text in HOSTILE[1:])])
def test_a_hostile_response_is_wrong_within_its_time_and_the_next_one_is_compared(text: str) -> None:
    with Verifier(seconds=3) as verifier:
        assert not verifier.same("5", text)
        assert verifier.same("5", "5")


def test_a_comparison_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Backtracks for ever, in one call that no handler of Python's interrupts.
    (tmp_path / "math_verify.py").write_text(
        "import re\n"
        "def parse(text, kinds, parsing_timeout):\n"
        "    re.match('(a+)+$', text.strip('$'))\n"
        "    return [1]\n"
        "def verify(one, other, timeout_seconds):\n"
        "    return True\n"
        "ExprExtractionConfig = LatexExtractionConfig = dict\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Verifier(seconds=1) as verifier:
        assert verifier.same("a", "a")
        first = verifier._process
        assert not verifier.same("a", "a" * 60 + "b") and verifier._process is None
        assert first is not None and first.returncode == -27, "SIGPROF"
        assert verifier.same("a", "a")
        assert not verifier.can_read("a" * 60 + "b")


def test_a_process_that_cannot_start_is_no_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Verifier(seconds=1) as verifier, pytest.raises(RunError, match=r"did not start \(exit code 1\)"):
        verifier.same("a", "a")


def group(answer: str | None, *texts: str) -> Group:
    drawn = tuple(Response(text, (1,), (-1.0,), "stop") for text in texts)
    return Group(Prompt((Message("user", "how many?"),), answer=answer), (1,), drawn)


def test_the_labeller_counts_what_cannot_be_read_and_keeps_its_labels(tmp_path: Path) -> None:
    groups = [group(r"\frac{3}{4}", r"\boxed{0.75}", "one half"), group("{", "5")]
    with Accounts(LabelCache(tmp_path / "labels.sqlite"), Ledger(None)) as accounts:
        labeller = build_labeller(MathScorer(), accounts)
        assert [labels.scores for labels in labeller.label(groups)] == [(1.0, 0.0), (None,)]
        assert accounts.missing == {"unparsed": 1}
        began = time.process_time()
        assert [labels.scores for labels in labeller.label(groups)] == [(1.0, 0.0), (None,)]
        assert accounts.counts["cached"] == 3 and time.process_time() - began < 1


@pytest.mark.parametrize("answer", [None, " "])
def test_a_prompt_without_an_answer_is_refused(answer: str | None) -> None:
    with pytest.raises(UserError, match=r"needs an answer, but the prompt 'how many\?' has none"):
        formulas.required_answer(group(answer).prompt)


def test_without_the_extra_its_command_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"^gate\.second: kind math needs .*pip install 'prefloop\[math\]'"):
        MathReward(MathScorer(), "gate.second")


def test_other_settings_are_another_labeller() -> None:
    assert MathReward(MathScorer()).version == MathReward(MathScorer()).version
    assert MathReward(MathScorer()).version != MathReward(MathScorer(seconds=7)).version
