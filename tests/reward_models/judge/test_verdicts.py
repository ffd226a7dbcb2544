from typing import Any

import pytest

from pipeline.config import JudgeScorer
from reward_models.judge.replies import ChatReply, without_thoughts
from reward_models.judge.verdicts import read_verdict


def read(text: str, **given: Any) -> tuple[float | None, str | None]:
    server = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    answer = read_verdict(ChatReply(text), JudgeScorer.model_validate({"server": server, **given}))
    return answer.value, answer.missing


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final Verdict: A", 1.0),
        ("Verdict: Response A", 1.0),
        ("**Final Verdict:** Response B", 0.0),
        ("### Final verdict\n\n**Response B**", 0.0),
        ("Verdict:\nA", 1.0),
        ("My verdict is: Assistant B.", 0.0),
        ("Therefore, my final verdict is **A**.", 1.0),
        ("Overall Verdict – [[B]]", 0.0),
        ("Verdict: Response A is better.", 1.0),
        (r"Verdict: \boxed{B}", 0.0),
        ("Verdict：A", 1.0),
        ("Final Verdict: tie", 0.5),
        ("Verdict: A\nOn reflection:\nFinal Verdict: Response B", 0.0),
        ("Verdict: B\r\n", 0.0),
    ],
)
def test_usual_words_round_a_verdict_are_read(text: str, value: float) -> None:
    assert read(text) == (value, None)


@pytest.mark.parametrize(
    "text",
    [
        "Verdict: Response A or B",
        "Verdict: A tie",
        "Verdict: A was my first idea.",
        "Verdict: a good answer",
        "Verdict: Response",
        "Verdict: neither A nor B",
        "The verdict:\n\n\n\nA",
        "Verdict A B",
        "Verdict: AB",
        "Preverdict: A",
        "Verdict: Response A is not better",
        "Verdict: response tie",
    ],
)
def test_other_words_are_no_verdict(text: str) -> None:
    assert read(text) == (None, "unparsed")


def test_long_runs_cost_one_pass() -> None:
    """A response may lead its judge to write such; nested repetition would take years here."""
    for run in (" ", "*", "\n", "verdict ", "score ", "verdict\n", "<think>", "</think>", "9"):
        text = f"verdict:{run * 100_000}x"
        assert read(without_thoughts(text)[0]) == (None, "unparsed")
        assert read(f"score:{run * 100_000}x", mode="pointwise") == (None, "unparsed")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Final Score: 8", (8.0, None)),
        ("**Overall score:** 7/10", (7.0, None)),
        ("Score: 7 out of 10", (7.0, None)),
        (r"My score is \boxed{6}", (6.0, None)),
        ("Final score: none", (None, "abstained")),
        ("Score: 4/5", (None, "unparsed")),
        ("Score: 70/100", (None, "unparsed")),
    ],
)
def test_scores_on_the_scale_that_was_asked_for(text: str, found: tuple[float | None, str | None]) -> None:
    assert read(text, mode="pointwise") == found


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("Verdict: A", "Verdict: A", False),
        ("<think>B</think>Verdict: A", "Verdict: A", True),
        ("B</think>\nVerdict: A", "\nVerdict: A", True),
        ("<think>\n<think>B</think></think>Verdict: A", "Verdict: A", True),
        ("<seed:think>B</seed:think>A", "A", True),
        ("◁think▷B◁/think▷A", "A", True),
        ("<|begin_of_thought|>B<|end_of_thought|>A", "A", True),
        ("Hm.\n<reasoning>B", "Hm.\n<reasoning>B", False),
        ("<think>B</think>\n<think>B</think>A", "A", True),
        ("<think>It forgets its <think> tag. B</think>A", "A", True),
        ("<think>It says `</think>`. B\n</think>A", "A", True),
        ("<think>mention <think> once</think> A as B has </think> too", " A as B has </think> too", True),
        ("<think>(<think>) or (<think>).</think>A as B has </think>.", "A as B has </think>.", True),
        ("<think>(<think>) B</think>A forgets <think>.", "A forgets <think>.", True),
        ("<think> a\n<think> b </think> c </think> A", " A", True),
        ("<think>It says </thinking>. B\n</think>A", "A", True),
        ("<think>B\n", "", True),
        ("<think><think>B</think>", "", True),
        ("<think>It says `</think>`. B", "", True),
        ("A says `</think>`.\nVerdict: B", "A says `</think>`.\nVerdict: B", False),
        ('Verdict: A\n\nB ends with "</think>".', 'Verdict: A\n\nB ends with "</think>".', False),
        ("<think>B</think>A says </think> and\n<think>.\nA", "A says </think> and\n<think>.\nA", True),
        ("B</think>A says <think>x</think>.", "A says <think>x</think>.", True),
        ("Both say:\n<think>x\n</think>\nVerdict: A", "Both say:\n<think>x\n</think>\nVerdict: A", False),
        ("<THINK>B", "", True),
        ("It says <think> often.", "It says <think> often.", False),
        ("<thanks>A", "<thanks>A", False),
    ],
)
def test_thoughts_are_not_read(text: str, answer: str, thought: bool) -> None:
    assert without_thoughts(text) == (answer, thought)
