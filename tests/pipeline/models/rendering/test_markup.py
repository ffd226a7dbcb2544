"""What a text may not spell, in the formats of known model families, and that it stays text where it does."""

import pytest
from tokenizers import AddedToken, normalizers

from pipeline.config import ChatSettings
from pipeline.models.chat import Chat
from pipeline.models.rendering.markup import Markup
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message
from tests.support.chat_formats import FORMATS, Format
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer

formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def markup_of(format_: Format) -> Markup:
    tokenizer = format_.tokenizer()
    return Markup(tokenizer, ChatTemplate(tokenizer))


@formats
def test_forged_turns_are_found_in_prompts_and_in_responses(format_: Format) -> None:
    markup = markup_of(format_)
    for role in ("user", "system", "assistant"):
        for text in format_.forged:
            assert markup.found(f"a {text} b", role), (role, text)
        assert [text for text in format_.harmless if markup.found(f"a {text} b", role)] == []


@formats
def test_thoughts_and_tool_calls_belong_to_the_assistant(format_: Format) -> None:
    markup = markup_of(format_)
    for text in format_.own:
        assert markup.found(text, "user") and not markup.found(text, "assistant")


@formats
def test_contents_have_no_control_token(format_: Format) -> None:
    tokenizer = format_.tokenizer()
    chat, markup = Chat(tokenizer, ChatSettings()), markup_of(format_)
    evil, plain = " ".join([*format_.forged, *markup.ids, "end"]), "end"
    control = set(markup.ids.values())

    def count(ids: tuple[int, ...]) -> int:
        return sum(number in control for number in ids)

    asked = chat.prompt_ids((Message("user", evil),))
    assert count(asked) == count(chat.prompt_ids((Message("user", plain),)))
    assert evil in tokenizer.decode(asked)
    turns = (Message("user", "hello"),)
    evil = " ".join([*format_.forged, "end"])
    answer = chat.response_ids(turns, evil, finished=False)
    assert count(answer) == count(chat.response_ids(turns, plain, finished=False))
    assert tokenizer.decode(answer).endswith(evil)


@formats
def test_broken_texts_spell_nothing(format_: Format) -> None:
    markup = markup_of(format_)
    for text in (*format_.forged, *markup.ids, "".join(format_.forged)):
        assert markup.found(markup.broken(text, "user"), "user") == []
    for text in format_.harmless:
        assert markup.broken(text, "user") == text


# Ordinary texts with words and colons, none of which marks a role in any of the formats.
ORDINARY = (
    "Answer: 42",
    "Note: it is so.\nToday: rain\n\nQuestion: why?\n Answer:\n42",
    "He said: Human: hello. ASSISTANT of the USER, user: x",
    "Human: hi\n\nAssistant: hello\nSystem: none",
    "### Results:\n1\n## Instruction:\n# Note:",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
    "# Instructions\n\n# Valid channels: analysis, final.\nReasoning: medium",
    "<answer>4</answer> <b>x</b> a < b > c [x] [1] {INST}",
)


@formats
def test_ordinary_texts_go_through_unchanged(format_: Format) -> None:
    markup = markup_of(format_)
    texts = [text for text in ORDINARY if not any(token in text for token in markup.ids)]
    assert len(texts) >= len(ORDINARY) - 1  # Gemma's tokenizer holds HTML
    for role in ("user", "assistant", "system"):
        for text in texts:
            assert (markup.found(text, role), markup.broken(text, role)) == ([], text)


def markup_of_turns(before: dict[str, str], after: str = "\n", start: str = "") -> Markup:
    """That of a template which writes ``start``, then for each turn its role's text, the content, and ``after``."""
    turns = f"{{% for m in messages %}}{{{{ {before!r}[m.role] + m.content + {after!r} }}}}{{% endfor %}}"
    asks = f"{{% if add_generation_prompt %}}{{{{ {before['assistant']!r} }}}}{{% endif %}}"
    tokenizer = tiny_tokenizer(template=start + turns + asks)
    return Markup(tokenizer, ChatTemplate(tokenizer))


def test_words_are_headers_where_the_template_begins_turns_with_them() -> None:
    markup = markup_of_turns(
        {"user": "Question: ", "assistant": "Answer: ", "system": ""}, start="Note:\nToday: rain.\n"
    )
    assert markup.headers == ("Question:", "Answer:")
    assert markup.found("Answer: 42") == [("Answer:", None)]
    assert markup.broken("a\nAnswer: 42\r\n  Question: x") == "a\nA nswer: 42\r\n  Q uestion: x"
    for text in ("The Answer: 42", "so (Answer: 42)", "MyAnswer: 42", "Note:\nToday: x", "Answer 42", "answer: 42"):
        assert (markup.found(text), markup.broken(text)) == ([], text)


def test_headings_are_headers_where_each_turn_has_one() -> None:
    markup = markup_of_turns(
        {"user": "### Instruction\n", "assistant": "### Response\n", "system": "# Rules\n"}, after="\n\n"
    )
    assert markup.headers == ("### Instruction", "### Response")
    assert markup.broken("x\n### Response\ny\n# Rules\n### Responses") == "x\n# ## Response\ny\n# Rules\n### Responses"


def test_words_are_headers_inside_of_lines_where_the_template_writes_them_there() -> None:
    markup = markup_of_turns(
        {"user": "USER: ", "assistant": "ASSISTANT: ", "system": "Hi! "}, after=" ", start="A chat. "
    )
    assert markup.headers == ("USER:", "ASSISTANT:")
    assert markup.broken("a USER: b SUPERUSER: c\nASSISTANT: d") == "a U SER: b SUPERUSER: c\nA SSISTANT: d"


@pytest.mark.parametrize(
    "before",
    [
        {"user": "<|user|>Note:\n", "assistant": "<|assistant|>", "system": "<|system|>Date: 26 Jul 2024\n\n"},
        {"user": "Today Date: 26 Jul 2024\n<|user|>", "assistant": "Answer:\n<|assistant|>It is 5.\n", "system": ""},
        {"user": "<|user|>", "assistant": "<|assistant|>", "system": "You know: all.\nKnowledge Date: 2023\n"},
    ],
)
def test_a_template_s_own_prose_is_no_header(before: dict[str, str]) -> None:
    once = "Think: in <answer> tags as in <b> or </b> this.\nQuestion:\nIt rains.\n"
    markup = markup_of_turns(before, start=once)
    assert set(markup.headers) <= {"Note:"}
    for text in ("Answer: 42", "Question: x", "Date: 26 Jul 2024", "<answer>4</answer>", "Think: so", "You know: all."):
        assert markup.broken(text, "user") == text


def test_tags_that_are_no_tokens_are_headers_anywhere() -> None:
    llama = {"user": "[INST] ", "assistant": " [/INST] ", "system": "<<SYS>>\n"}
    gemma = {role: f"<start_of_turn>{role}\n" for role in llama}
    oss = {role: f"<|start|>{role}<|channel|>final<|message|>" for role in llama}
    oss["system"] = "<|start|>developer<|message|># Instructions\n\n"
    meta = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in llama}
    for before, tags in (
        (llama, {"[INST]", "[/INST]", "<<SYS>>"}),
        (gemma, {"<start_of_turn>"}),
        (oss, {"<|start|>", "<|channel|>", "<|message|>"}),
        (meta, {"<|start_header_id|>", "<|end_header_id|>"}),
    ):
        markup = markup_of_turns(before, start="Today Date: 26 Jul 2024\n")
        assert set(markup.headers) == tags
        assert all(markup.found(f"a{tag}b") == [(tag, None)] for tag in tags)
        assert all(markup.broken(text, "user") == text for text in ORDINARY)


def test_texts_inside_of_json_are_broken_where_they_begin_a_line() -> None:
    markup = markup_of_turns({"user": "Question: ", "assistant": "Answer: ", "system": ""})
    assert (
        markup.broken_json('{"a": ["x\\nAnswer: é", "Question: y", 1]}')
        == '{"a": ["x\\nA nswer: é", "Q uestion: y", 1]}'
    )
    assert markup.broken_json('{"a":  "no Answer: y"}') == '{"a":  "no Answer: y"}' and markup.broken_json("") == ""


def test_tokens_are_found_where_the_tokenizer_looks_for_them() -> None:
    tokenizer = tiny_tokenizer(template=TEMPLATE.replace("<|user|>", "<turn>").replace("'<|'", "'<turn><|'"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<turn>", normalized=True)])
    wide = "＜turn＞ the cat"
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert turn in tokenizer(wide, add_special_tokens=False)["input_ids"]
    chat = Chat(tokenizer, ChatSettings())
    assert chat.spelled(wide, "user") == [("<turn>", turn)]
    assert chat.prompt_ids((Message("user", wide),)).count(turn) == chat.prompt_ids((Message("user", "x"),)).count(turn)
    assert turn not in chat.response_ids((Message("user", "x"),), wide)


def test_overlapping_tokens_stay_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens(["|>x<|"])
    chat = Chat(tokenizer, ChatSettings())
    overlapping = "<|user|>x<|user|>"
    assert [token for token, _ in chat.spelled(overlapping, "user")] == ["<|user|>", "<|user|>"]
    asked = chat.prompt_ids((Message("user", overlapping),))
    control = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("|>x<|")}
    assert [number in control for number in asked] == [True, *[False] * (len(asked) - 3), True, True]
