"""Each cause of a fault on rows that have it and on rows that do not, with a real tokenizer."""

import pytest

from pipeline import config
from pipeline.data.faults import Fault, FaultFinder, Tokens
from pipeline.data.forms.spelled import is_spelled
from pipeline.data.reading import PromptRow
from pipeline.data.split import Split
from pipeline.models.chat import Chat
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer

LIMITS = config.ChatSettings(max_prompt_tokens=40, max_response_tokens=12)
CHAT = Chat(tiny_tokenizer(), LIMITS)
PLAIN = Chat(tiny_tokenizer(template=None), LIMITS)


def prompt(text: str, answer: str | None = None) -> Prompt:
    return Prompt((Message("user", text),), answer=answer)


def pair(chosen: str = "to the barn", rejected: str = "on the mat", text: str = "a dog ran", **more: float) -> TextPair:
    return TextPair(prompt(text), chosen, rejected, **more)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"from":"NYC","value":3}', False),
        ('{"from": "NYC", "value": "3", "to": "LA"}', False),
        ('[{"from": "user", "value": 3}]', False),
        ('{"role": "admin", "content": "all"}', False),
        ('{"role": "user"}', False),
        ('{"value": "the role: user", "note": {"role": "user"}}', False),
        ("{'content': 3}", False),
        ('[{"from": "NYC", "value": 3}, {"from": "LA", "value": 4}]', False),
        ('{"from": "Human", "value": "x"}', True),
        ('[{"content": "x", "role": "assistant"}]', True),
        ('[{"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}]', True),
        ('[{"role": "tool", "content": {"x": 1}}]', True),
        ("array([{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}], dtype=object)", True),
        ('[{"role": "user", "content": "cut off', True),
        ('[{"role": "narrator", "content": "x"}, {"role": "user", "content": "y"}]', True),
    ],
)
def test_only_messages_of_known_roles_are_a_conversation_written_out(text: str, found: bool) -> None:
    assert is_spelled(text) is found


def causes(*rows: PromptRow | TextPreference, chat: Chat = CHAT, **more: object) -> list[list[str]]:
    finder = FaultFinder(Tokens(chat, LIMITS, **more))  # type: ignore[arg-type]
    return [[cause for cause, _ in finder.faults(f"r, row {n}", row)] for n, row in enumerate(rows, 1)]


def said(row: PromptRow | TextPreference, finder: FaultFinder) -> list[Fault]:
    return [*finder.faults("r, row 1", row)]


def test_sound_rows_have_no_faults() -> None:
    assert causes(pair()) == [[]]
    assert causes(TextGroup(prompt("a dog"), ("ran", "sat", "the"), (1, 1, 0))) == [[]]
    assert causes(UnpairedText(prompt("a dog"), "ran", True), PromptRow(prompt("a cat"))) == [[], []]


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (pair(text="<s>a dog"), "doubled_bos"),
        (pair(chosen="<s>to the barn"), "doubled_bos"),
        (pair(text="a dog ran</s>"), "doubled_eos"),
        (pair(chosen="to the barn<|end|>"), "doubled_eos"),
        (pair(text="a dog <|assistant|> ran"), "special_token"),
        (pair(chosen="the cat sat on the mat " * 9), "missing_eos"),
        (pair(chosen=" \n"), "empty"),
        (pair(chosen="on the mat"), "identical"),
        (pair("the cat sat on the mat " * 9 + "x", "the cat sat on the mat " * 9), "identical_when_cut"),
        (pair(soft_label=0.5), "tie"),
        (pair(chosen_score=2, rejected_score=2), "tie"),
        (pair(text="Zizzi serves cheap food. " * 30), "long_for_policy"),
        (pair(chosen_score=1, rejected_score=2), "contradiction"),
        (pair(chosen='[{"role": "assistant", "content": "x"}]'), "spelled"),
        (pair(rejected="[{'content': 'x', 'role': 'assistant'}]"), "spelled"),
        (TextGroup(prompt("a dog"), ("ran", "sat", "the"), (1, None, 1)), "tie"),
        (TextGroup(prompt("a dog"), ("ran", "", "sat"), (1, 2, 3)), "empty"),
        (TextGroup(prompt("a dog"), ("ran", "sat", "ran"), (1, 2, 3)), "identical"),
        (TextGroup(prompt("a dog"), ("ran", "sat"), (1, 1)), "tie"),
        (UnpairedText(prompt("a dog"), "", True), "empty"),
        (UnpairedText(prompt("a dog"), "ran</s>", True), "doubled_eos"),
        (PromptRow(prompt("<pad> a dog")), "special_token"),
        (PromptRow(prompt("a dog"), ("ran<s>",)), "doubled_bos"),
    ],
)
def test_a_fault_has_its_cause(row: PromptRow | TextPreference, cause: str) -> None:
    (found,) = causes(row)
    beside = {"missing_eos"} if cause in ("identical_when_cut", "spelled") else set()
    assert set(found) == {cause} | beside and len(found) == len(set(found))


def test_a_prompt_that_merges_with_its_response_is_no_prefix() -> None:
    assert causes(pair(text="the ca", chosen="t sat"), chat=PLAIN) == [["not_a_prefix"]]
    assert causes(pair(text="the ca", chosen="t sat")) == [[]]


def test_a_template_that_renders_an_answered_prompt_anew_is_no_prefix() -> None:
    template = TEMPLATE.replace(
        "{% for m in messages %}", "{{ 'answered' if not add_generation_prompt }}{% for m in messages %}"
    )
    assert causes(pair(), chat=Chat(tiny_tokenizer(template=template), LIMITS)) == [["not_a_prefix"]]


def test_repeats_are_of_prompts_answers_and_rows() -> None:
    first = pair()
    swapped = pair(first.rejected, first.chosen)
    assert causes(first, pair("barn", "mat"), first, swapped) == [
        [],
        ["duplicate_prompt"],
        ["duplicate_prompt", "duplicate_row"],
        ["duplicate_prompt", "duplicate_row"],
    ]
    rows = [PromptRow(prompt("p", "1")), PromptRow(prompt("p", "2")), PromptRow(prompt("p", "1"), ("x",))]
    assert causes(*rows) == [[], ["duplicate_prompt", "differing_answer"], ["duplicate_prompt"]]


def test_a_leak_is_a_held_out_prompt_but_for_case_and_spaces() -> None:
    finder = FaultFinder(leaks=Split.of([prompt("A dog  ran")]))
    assert said(pair(), finder) == [("leak", "held out, ignoring case, spaces and Unicode form: 'a dog ran'")]
    assert said(pair(text="a cat ran"), finder) == []


def test_lengths_are_those_of_the_context_and_of_the_reward_model() -> None:
    assert causes(pair(), context=5) == [["long_for_policy"]]
    length = {"reward_length": lambda messages, turn: len(messages[-1].content) + len(turn.content), "reward_limit": 20}
    assert causes(pair(), PromptRow(prompt("a cat")), **length) == [[], []]
    assert causes(pair(rejected="on the old mat"), **length) == [["long_for_reward_model"]]


def test_one_id_that_begins_and_ends_is_taken_by_where_it_stands() -> None:
    tokenizer = tiny_tokenizer(template=None)
    tokenizer.bos_token = tokenizer.eos_token
    chat = Chat(tokenizer, LIMITS)
    assert causes(pair(text="</s>a dog."), pair("ran</s>", text="a cat."), chat=chat) == [
        ["doubled_bos"],
        ["doubled_eos"],
    ]


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEMPLATE
    finder = FaultFinder(Tokens(Chat(tiny_tokenizer(template=template), LIMITS), LIMITS))
    ((cause, why),) = said(PromptRow(Prompt((Message("system", "s"), Message("user", "u")))), finder)
    assert cause == "refused" and "refuses turns system, user: no system turns" in why


def test_causes_are_the_limits() -> None:
    from typing import get_args

    from pipeline.data.faults import Cause

    assert list(get_args(Cause)) == list(config.Limits.model_fields)
