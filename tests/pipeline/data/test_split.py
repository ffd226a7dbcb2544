"""The held-out split: by content, stable, and closed against copies."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import HeldOut
from pipeline.data.split import Split, split_held_out
from pipeline.data.spool.distinct import DistinctPrompts
from pipeline.errors import UserError
from pipeline.types import Message, Prompt


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def test_held_out_prompts_do_not_depend_on_the_order_of_rows() -> None:
    given = [prompt(str(number)) for number in range(50)]
    split = split_held_out(given, HeldOut(prompts=12, seed=1))
    assert len(split.held_out) == 12 and split.ids == {p.id for p in split.held_out}
    assert [given.index(p) for p in split.held_out] == sorted(given.index(p) for p in split.held_out)
    again = split_held_out(given[::-1], HeldOut(prompts=12, seed=1))
    other = split_held_out(given, HeldOut(prompts=12, seed=2))
    assert again.ids == split.ids != other.ids


def test_holding_out_every_prompt_is_refused() -> None:
    with pytest.raises(UserError, match=r"held_out.prompts: 10 .*hold out 10 of 10 distinct prompts and leave none"):
        split_held_out([prompt(str(number)) for number in range(10)], HeldOut(prompts=10))


@pytest.mark.parametrize(
    ("total", "prompts", "share", "held"),
    [
        (170, 100, 0.1, 20),
        (211, 100, 0.1, 22),
        (80, 100, 0.1, 20),
        (79, 100, 0.1, 8),
        (170, 9, 0.1, 9),
        (2000, 100, 0.1, 100),
        (5, 100, 0.1, 1),
        (2, 1, 1, 1),
        (10, 9, 1.0, 9),
    ],
)
def test_held_out_prompts_are_a_share_with_a_ceiling(total: int, prompts: int, share: float, held: int) -> None:
    given = [prompt(str(number)) for number in range(total)]
    split = split_held_out(given, HeldOut(prompts=prompts, share=share))
    assert len(split.held_out) == held
    assert split.ids <= split_held_out(given, HeldOut(prompts=total - 1)).ids


def starting(texts: list[str], **settings: Any) -> set[str]:
    distinct = DistinctPrompts()
    for text in texts:
        distinct.add(replace(prompt(text), guessed=True))
    held = split_held_out(distinct, HeldOut(**settings), distinct.together()).held_out
    return {found.messages[0].content for found in held}


def test_guessed_prompts_that_begin_with_each_other_are_on_one_side() -> None:
    texts = [
        f"Write about {topic}.{more}"
        for topic in "ABCDEFGHIJ"
        for more in ("", " Sure,", " sure, here", " Once\n upon")
    ]
    texts += ["Write about K", "Write about Kites", "Write about K\x01", "Write about k too"]
    sides = set()
    for seed in range(20):
        held = starting(texts, prompts=9, seed=seed)
        topics = {text[12] for text in held if text[12] not in "Kk"}
        assert 4 <= len(held) <= 9 and all(sum(text[12] == topic for text in held) == 4 for topic in topics)
        assert ("Write about K" in held) == ("Write about k too" in held)
        sides.add(("Write about K" in held, "Write about Kites" in held))
    assert len(sides) > 2, "words that begin alike are no start"
    assert starting(texts, prompts=2, seed=0) <= {
        "Write about Kites",
        "Write about K\x01",
        "Write about K",
        "Write about k too",
    }
    with pytest.raises(
        UserError, match=r"2 of 40 distinct prompts are to be held out, but the smallest of 10 groups has 4"
    ):
        starting(texts[:40], prompts=2)
    distinct = DistinctPrompts()
    for text in texts:
        distinct.add(replace(prompt(text), guessed=True))
    assert distinct.guesses() == (44, 31)
    assert len(starting(texts, prompts=9)) and not DistinctPrompts().together()


def test_prompts_of_one_source_are_on_one_side() -> None:
    distinct = DistinctPrompts(by_origin=True)
    for number in range(60):
        distinct.add(replace(prompt(str(number)), origin=f"site {number // 3}" if number < 45 else ""))
    # This prompt joins its two sources.
    distinct.add(replace(prompt("3"), origin="site 0"))
    for seed in range(10):
        split = split_held_out(distinct, HeldOut(prompts=13, seed=seed), distinct.together())
        held = {int(found.messages[0].content) for found in split.held_out}
        assert len(held) == 13
        assert all(len(held & {*range(start, start + 3)}) in (0, 3) for start in range(0, 45, 3))
        assert len(held & {*range(6)}) in (0, 6)
    plain = split_held_out(distinct, HeldOut(prompts=13))
    assert plain.ids == split_held_out(distinct, HeldOut(prompts=13), DistinctPrompts().together()).ids


def test_a_copy_is_the_prompt_but_for_case_and_spaces() -> None:
    split = Split.of([prompt("What is  it?\nSay.")])
    assert split.copies(prompt("what is it? SAY. ")) and not split.holds_out(prompt("what is it? SAY. "))
    assert split.holds_out(prompt("What is  it?\nSay.")) and not split.copies(prompt("what is it say"))
    assert not split.copies(Prompt((Message("system", "What is it? Say."),)))


@pytest.mark.parametrize(
    "copy",
    [
        "Ｗｈａｔ ｉｓ ｉｔ？ Ｓａｙ ｃａｆé．",
        "Wh\u200bat is\u00a0it? Say caf\u00e9.",
        "What is it? Say cafe\u0301.",
        "\ufeffWhat\u3000is it? Say ca\u00adf\u00e9.\u200e",
        "What \u034fis\ufe0f it? SAY CAF\u00c9.",
        "𝐖𝐡𝐚𝐭 is it? Say ca\u2060fé.",
    ],
)
def test_a_copy_may_be_written_in_another_unicode_form(copy: str) -> None:
    split = Split.of([prompt("What is it? Say caf\u00e9.")])
    assert split.copies(prompt(copy)) and not split.copies(prompt("What is it? Say cafe."))


@pytest.mark.parametrize(
    ("held_out", "other"),
    [("x² + 1", "x2 + 1"), ("x² + 1", "x^2 + 1"), ("H₂O", "H2O"), ("½", "1⁄2"), ("①", "1"), ("no", "nо"), ("ᴬ", "a")],
)
def test_forms_that_mean_something_else_are_no_copies(held_out: str, other: str) -> None:
    split = Split.of([prompt(held_out), prompt("Strasse")])
    assert split.copies(prompt(held_out)) and not split.copies(prompt(other))
    assert split.copies(prompt("STRAßE")) and not split.copies(prompt("Straße 1"))


@pytest.mark.parametrize("style", ["ﾃﾞｰﾀ", "データ\u200d", "\u30c6\u3099ータ"])
def test_styles_of_a_character_are_one(style: str) -> None:
    assert Split.of([prompt("データ")]).copies(prompt(style))
