"""Chat templates that TRL ships, as their models have them: every one gives the ids that transformers gives."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from pipeline.config import ChatSettings
from pipeline.errors import RefusedTurnsError
from pipeline.models.chat import Chat
from pipeline.types import Message
from tests.support.tiny_model import tiny_tokenizer

DAY = "2026-01-31"
FILES = sorted(
    file
    for file in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
    # Those that TRL changed for training mark what is trained on.
    if not file.stem.endswith("_training")
)
USER, DOG, WHY = Message("user", " the cat "), Message("assistant", "a dog"), Message("user", "why?")
TALKS = (
    (USER,),
    (USER, DOG, WHY),
    (Message("system", "be kind"), USER),
    (Message("developer", "be kind"), USER),
    (Message("chat_template_kwargs", '{"enable_thinking": false}'), USER),
)
# Their contents are lists.
OF_IMAGES = ("idefics3", "llava_next", "smolvlm")
ANSWERS = ("a dog", " a dog \n", "<think>\nso\n</think>\n\na dog")


@pytest.fixture(autouse=True)
def a_fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            return cls.fromisoformat(DAY)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def rendered(
    tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...], knows: bool, parts: bool, **options: Any
) -> list[int]:
    turns: Any = [dict(message.plain) for message in messages if message.is_turn]
    for turn in turns:
        if turn["role"] == "developer" and not knows:
            turn["role"] = "system"
    own = any(message.role == "chat_template_kwargs" for message in messages)
    if parts:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    if own:
        options["enable_thinking"] = False
    text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_there_are_many() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_ids_are_those_of_transformers(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    tokenizer = tiny_tokenizer(template=source)
    chat = Chat(tokenizer, ChatSettings(date=DAY, thinking="keep"))
    knows = "'developer'" in source or '"developer"' in source
    parts, compared = file.stem in OF_IMAGES, 0
    for messages in TALKS:
        try:
            asked = chat.prompt_ids(messages)
        except RefusedTurnsError:
            with pytest.raises(Exception, match=r"System role not supported|roles must alternate|No user query"):
                rendered(tokenizer, messages, knows, parts, add_generation_prompt=True)
            continue
        assert list(asked) == rendered(tokenizer, messages, knows, parts, add_generation_prompt=True)
        for text in ANSWERS:
            whole = rendered(tokenizer, (*messages, Message("assistant", text)), knows, parts)
            said = chat.response_ids(messages, text)
            follows = chat.continues(messages, text)
            compared += follows
            if follows and whole[: len(asked)] != [*asked] and chat.spell(asked).endswith("<think>\n"):
                # The template leaves out the thought that its prompt has opened: the answer goes on with it.
                assert chat.spell(said[:-1]) == text.removeprefix("<think>\n")
                continue
            # One template writes its tags before a text that has them; prefloop gives it the thought by itself.
            if follows and not (file.stem == "qwen3_8" and text.startswith("<think>")):
                # The end token may follow a line break that the template does not write.
                assert whole[: len(asked) + len(said) - 1] == [*asked, *said[:-1]]
            assert said[-1] in chat.end_ids
            assert chat.spell(said).count("<think>") <= 1
    opened = "<think>" in chat.spell(chat.prompt_ids((USER,)))
    assert compared or opened, "a prompt that opens a thought is followed by none without one"
