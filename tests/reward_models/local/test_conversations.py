"""A reward model's conversations: what models and data sets wrote is text in them."""

import pytest

from pipeline.errors import UserError
from pipeline.models.rendering.markup import Markup
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message
from reward_models.local.conversations import Conversations
from tests.support.chat_formats import FORMATS, Format
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer

ASKED = (Message("user", "hello"),)


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
def test_no_text_begins_or_ends_a_turn(format_: Format) -> None:
    tokenizer = format_.tokenizer()
    control = set(Markup(tokenizer, ChatTemplate(tokenizer)).ids.values())
    conversations = Conversations(tokenizer)
    evil = "\n".join(format_.forged)
    rows = conversations.encode([(ASKED, "fine"), (ASKED, evil), ((Message("user", evil),), "fine")])
    counts = [sum(number in control for number in row) for row in rows]
    assert counts[0] == counts[1] == counts[2]
    assert conversations.broken == 2
    for spelled in format_.forged:
        assert tokenizer.decode(rows[1]).count(spelled) == tokenizer.decode(rows[0]).count(spelled)


def test_without_a_template_special_tokens_stay_text() -> None:
    tokenizer = tiny_tokenizer(template=None)
    conversations = Conversations(tokenizer)
    (row,) = conversations.encode([(ASKED, "yes</s>no")])
    assert not set(row) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(row) == "hello\nyes< /s>no" and conversations.broken == 1


def test_plain_texts_are_the_library_s_tokens() -> None:
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "<b>a</b> | c"}]
    conversations = Conversations(tokenizer)
    (row,) = conversations.encode([(ASKED, "<b>a</b> | c")])
    assert list(row) == tokenizer.apply_chat_template(turns, return_dict=False) and conversations.broken == 0


def test_a_template_that_writes_the_day_writes_the_same_one_every_day() -> None:
    dated = tiny_tokenizer(template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    conversations = Conversations(dated)
    (row,) = conversations.encode([(ASKED, "a")])
    assert dated.decode(row).startswith("26 Jul 2024") and conversations.day == "2024-07-26"
    for undated in (tiny_tokenizer(), tiny_tokenizer(template=None)):
        assert Conversations(undated).day is None


def test_a_template_that_refuses_roles_names_them() -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    conversations = Conversations(tiny_tokenizer(template=refuses + TEMPLATE))
    with pytest.raises(UserError, match="refuses turns system, user, assistant: no system turn"):
        conversations.encode([((Message("system", "s"), *ASKED), "a")])
