"""What a text may not spell, in the formats of known model families, and that it stays text where it does."""

import pytest
from tokenizers import AddedToken, normalizers

from pipeline.config import ChatSettings
from pipeline.models.chat import Chat
from pipeline.models.markup import Markup
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
    assert [number in control for number in asked] == [True, True, *[False] * (len(asked) - 4), True, True]
