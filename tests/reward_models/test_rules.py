"""Gold rewards against values worked out by hand."""

import pytest

from pipeline.config import ExactMatchScorer, KeywordScorer, LengthScorer, NumberScorer, RegexScorer, SlotScorer
from pipeline.errors import UserError
from pipeline.types import FinishReason, Group, Message, Prompt, Response
from reward_models.rules import (
    KeywordReward,
    LengthReward,
    MatchReward,
    NumberReward,
    RegexReward,
    SlotReward,
    final_number,
)

MR = "name[Bluebell], food[Thai], area[harbour], family[yes]"
RIGHT = "Bluebell serves Thai food at the harbour and is family friendly."


def group(*texts: str, answer: str | None = MR, finish: FinishReason = "stop") -> Group:
    responses = tuple(Response(text, (1,), (), finish) for text in texts)
    return Group(Prompt((Message("user", "the question"),), answer=answer), (1,), responses)


def match(text: str, answer: str, **settings: object) -> float | None:
    scorer = MatchReward(ExactMatchScorer.model_validate(settings))
    return scorer.score([group(text, answer=answer)])[0][0]


def test_slots_realised_minus_values_made_up() -> None:
    texts = (RIGHT, "Bluebell serves Thai food.", RIGHT.replace("Thai", "Thai and French"), RIGHT + " It is cheap.", "")
    assert SlotReward(SlotScorer()).score([group(*texts)]) == [(4.0, 2.0, 3.0, 3.0, 0.0)]


def test_running_on_and_being_cut_cost() -> None:
    scorer = SlotReward(SlotScorer(free_words=11, length_cost=0.1, cut_cost=2.0))
    assert scorer.score([group(RIGHT, RIGHT + " so good.")]) == [(pytest.approx(4.0), pytest.approx(3.8))]
    assert scorer.score([group(RIGHT, finish="length")]) == [(2.0,)]


def test_prompt_without_a_meaning_representation_is_named() -> None:
    scorer = SlotReward(SlotScorer())
    with pytest.raises(UserError, match=r"'the question' has none \(columns.answer\)"):
        scorer.score([group("x", answer=None)])
    with pytest.raises(UserError, match=r"slots needs an answer slot\[value\].*'the question': not slot"):
        scorer.score([group("x", answer="forty-two")])


@pytest.mark.parametrize(
    ("text", "answer", "settings", "score"),
    [
        ("The answer is Paris.", "paris", {}, 1.0),
        ("The answer is Paris.", "paris", {"ignore_case": False}, 0.0),
        ("It is 112.", "12", {}, 0.0),
        ("It is 12.", "12", {}, 1.0),
        ("first #### 3, then #### 12", "12", {"pattern": r"#### (\d+)"}, 1.0),
        ("first #### 12, then #### 3", "12", {"pattern": r"#### (\d+)"}, 0.0),
        ("12", "12", {"pattern": r"#### (\d+)"}, 0.0),
        ("x (optional)", "y", {"pattern": r"x(z)?"}, 0.0),
    ],
)
def test_exact_match(text: str, answer: str, settings: dict[str, object], score: float) -> None:
    assert match(text, answer, **settings) == score


def test_pattern_that_is_no_regular_expression() -> None:
    with pytest.raises(UserError, match=r"scorer.pattern: '\(' is not a regular expression"):
        MatchReward(ExactMatchScorer(pattern="("))


def test_length_is_the_distance_to_the_target() -> None:
    scorer = LengthReward(LengthScorer(target_words=3))
    assert scorer.score([group("one two three", "one", "a b c d e")]) == [(0.0, -2.0, -2.0)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 1,234", 1234.0),
        ("#### 5\nand again #### $7.50 each", 7.5),
        ("first 12, then 20-5 = 15.", 15.0),
        ("it is 10-5", 5.0),
        ("it fell to -5 degrees", -5.0),
        ("a loss of −3.5%", -3.5),
        (r"thus \boxed{3/4} of the 12", 0.75),
        ("1, 2, 3", 3.0),
        ("1,234,567.5 people", 1234567.5),
        ("6.02e23 of them", 6.02e23),
        ("18 eggs (GPT4)", 18.0),
        ("#### none", None),
        ("no number", None),
        ("1/0", None),
        ("9" * 5000, None),
    ],
)
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_numbers_are_compared_as_numbers() -> None:
    scorer = NumberReward(NumberScorer())
    assert scorer.score([group("18.00 dollars", "#### 19", "", answer="9 + 9 = 18\n#### 18")]) == [(1.0, 0.0, 0.0)]
    assert NumberReward(NumberScorer(tolerance=0.1)).score([group("19", answer="18")]) == [(1.0,)]
    expected = "needs a number in the answer; the answer of the prompt 'the question' is 'none'"
    with pytest.raises(UserError, match=expected):
        scorer.score([group("1", answer="none")])


def test_a_pattern_found_or_not() -> None:
    scorer = RegexReward(RegexScorer(pattern=r"^Answer: \w+$", found=0.5, absent=-1.0))
    assert scorer.score([group("Answer: yes", "The answer: yes")]) == [(0.5, -1.0)]
    with pytest.raises(ValueError, match=r"is not a regular expression"):
        RegexScorer(pattern="(")


def test_keywords_as_words_of_their_own() -> None:
    scorer = KeywordReward(KeywordScorer(words=("river", "Old  town", "sea", "sea")))
    assert scorer.score([group("The RIVER of the old\ntown.", "season", "")]) == [(2 / 3, 0.0, 0.0)]
    counted = KeywordReward(KeywordScorer(count=True, ignore_case=False))
    assert counted.score([group("a C++ and b", "A", answer="a, b,\nC++")]) == [(3.0, 0.0)]
    with pytest.raises(UserError, match="keywords found no keyword in the answer"):
        counted.score([group("x", answer=" , ")])
