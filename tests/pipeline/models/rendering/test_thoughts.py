"""Where the answer begins, for the marks that templates of current models write."""

import importlib.resources
import json

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from pipeline.config import ChatSettings
from pipeline.errors import UserError
from pipeline.models.chat import Chat
from pipeline.sampling.sampler import engine_stops, make_response
from pipeline.types import Message, Response
from tests.support.chat_formats import FORMATS

ASKED = (Message("user", "the cat"),)
QWEN = "<|im_start|>", "<|im_end|>", "<think>", "</think>"
# A template of TRL's, tokens of its model, a thought as the model samples it after the prompt, and whether the prompt
# has opened it.
SAMPLED = {
    "qwen3": (QWEN, "<think>\nsat\n</think>\n\n", False),
    "qwen3_6": (QWEN, "sat\n</think>\n\n", True),
    "deepseek_r1_distill": (("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"), "sat\n</think>\n\n", True),
    "glm4moe": (("<|user|>", "<|assistant|>", "<think>", "</think>"), "\n<think>sat</think>\n", False),
    "nemotron_3_nano": (QWEN, "sat\n</think>\n", True),
    "lfm2_2_5": (QWEN, "<think>sat</think>", False),
    "gemma4": (("<|turn>", "<turn|>", "<|channel>", "<channel|>"), "<|channel>thought\nsat\n<channel|>", False),
    "gemma4_v5": (("<|turn>", "<turn|>", "<|channel>", "<channel|>"), "<|channel>thought\nsat\n<channel|>", False),
    "gptoss": (
        ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"),
        "<|channel|>analysis<|message|>sat<|end|><|start|>assistant<|channel|>final<|message|>",
        False,
    ),
    "muse_glimmer": (
        ("<|start|>", "<|eom|>", "<|eot|>", "<|message|>"),
        " to=self<|message|>sat<|eom|><|start|>assistant to=user<|message|>",
        False,
    ),
}


def thinker(name: str, tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    tokenizer = FORMATS["zephyr"].tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    tokenizer.chat_template = (importlib.resources.files("trl") / f"chat_templates/{name}.jinja").read_text("utf-8")
    return tokenizer


def sampled(tokenizer: PreTrainedTokenizerFast, chat: Chat, text: str, stop: tuple[str, ...] = ()) -> Response:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return make_response(chat, chat.prompt_ids(ASKED), ids, [-1.0] * len(ids), stop)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_answer_begins_after_the_thought(name: str) -> None:
    tokens, thought, opened = SAMPLED[name]
    tokenizer = thinker(name, tokens)
    hide, keep = (Chat(tokenizer, ChatSettings(thinking=shown)) for shown in ("hide", "keep"))
    count = len(tokenizer(thought.rstrip("\n"), add_special_tokens=False)["input_ids"])
    found = sampled(tokenizer, hide, thought + "a dog</s>")
    assert (found.text, found.thinking_tokens, found.hidden_tokens) == ("a dog", count, count)
    assert not found.in_thought and found.finish_reason == "stop"
    assert hide.spell(found.shown_ids).strip() == "a dog</s>"
    whole = sampled(tokenizer, keep, thought + "a dog</s>")
    assert (whole.text, whole.thinking_tokens, whole.hidden_tokens) == (thought + "a dog", count, 0)
    assert whole.token_ids == found.token_ids
    # Cut off inside the thought: no answer.
    inside = sampled(tokenizer, hide, thought[: thought.index("sat") + 3])
    assert (inside.text, inside.finish_reason, inside.in_thought) == ("", "length", True)
    assert inside.thinking_tokens == len(inside.token_ids)
    # Without a thought, all is answer; after a prompt that has opened one, all is thought.
    plain = sampled(tokenizer, hide, "a dog</s>")
    assert (plain.text, plain.in_thought) == (("", True) if opened else ("a dog", False))


@pytest.mark.parametrize("name", SAMPLED)
def test_stop_strings_end_answers_and_stand_for_nothing_in_thoughts(name: str) -> None:
    tokens, thought, _ = SAMPLED[name]
    tokenizer = thinker(name, tokens)
    for shown in ("hide", "keep"):
        chat = Chat(tokenizer, ChatSettings(thinking=shown))
        assert engine_stops(chat, ["sat"]) == []
        found = sampled(tokenizer, chat, thought + "a dog sat on the mat</s>", stop=("sat",))
        assert found.text == ("" if shown == "hide" else thought) + "a dog "
        assert found.finish_reason == "stop"
        assert chat.decode(found.token_ids).endswith("a dog sat")
        assert len(found.logprobs) == len(found.token_ids)
        cut = sampled(tokenizer, chat, thought[: thought.index("sat") + 3], stop=("sat",))
        assert (cut.finish_reason, cut.in_thought) == ("length", True)


def test_thoughts_of_data_are_told_from_their_answers() -> None:
    tokenizer = thinker("qwen3", QWEN)
    given = (
        Message("assistant", "a dog", json.dumps({"reasoning_content": "sat"})),
        Message("assistant", "<think>\nsat\n</think>\n\na dog"),
    )
    for turn in given:
        for shown, text in (("hide", "a dog"), ("keep", turn.shown)):
            chat = Chat(tokenizer, ChatSettings(thinking=shown))
            ids = chat.response_ids(ASKED, turn.content, extra=turn.extra)
            found = chat.thoughts.response(chat.prompt_ids(ASKED), ids, (), "stop", turn)
            assert found.text == text
            assert found.thinking_tokens == len(tokenizer("<think>\nsat\n</think>")["input_ids"])


@pytest.mark.parametrize(
    ("name", "content", "thought", "shown"),
    [
        ("qwen3", "end it with </think> please", "sat", "end it with </think> please"),
        ("glm4moe", "end it with </think> please", "sat", "end it with </think> please"),
        ("nemotron_3_nano", "<think>\nsat\n</think>\n\nend it with </think>", "", "end it with </think>"),
        ("nemotron_3_nano", "<think>\na\n</think>\n\n<think>\nb\n</think>\n\na dog", "", "a dog"),
        ("nemotron_3_nano", "sat\n</think>\n\na dog", "", "a dog"),
        # Its format writes no thought of the last turn, so there is none in the tokens.
        ("gemma4", "a dog", "sat", "a dog"),
    ],
)
def test_answers_of_data_may_speak_of_marks_and_follow_several_thoughts(
    name: str, content: str, thought: str, shown: str
) -> None:
    turn = Message("assistant", content, json.dumps({"reasoning_content": thought}) if thought else "")
    chat = Chat(thinker(name, SAMPLED[name][0]), ChatSettings())
    ids = chat.response_ids(ASKED, turn.content, extra=turn.extra)
    assert chat.thoughts.response(chat.prompt_ids(ASKED), ids, (), "stop", turn).text == shown


def test_run_folders_begun_before_go_on_with_what_labellers_saw() -> None:
    for name, text in (("qwen3", None), ("gptoss", "a dog")):
        tokens, thought, _ = SAMPLED[name]
        tokenizer = thinker(name, tokens)
        found = sampled(tokenizer, Chat(tokenizer, ChatSettings(thinking="earlier")), thought + "a dog</s>")
        assert (found.text, found.hidden_tokens) == (thought + "a dog" if text is None else text, 0)
        cut = sampled(tokenizer, Chat(tokenizer, ChatSettings(thinking="earlier")), thought[: thought.index("sat")])
        assert not cut.in_thought


def test_a_thought_that_speaks_of_its_marks_ends_at_the_first_and_an_answer_may_open_none() -> None:
    tokenizer = thinker("qwen3", QWEN)
    chat = Chat(tokenizer, ChatSettings())
    assert sampled(tokenizer, chat, "<think>a <think> b</think>dog</s>").text == "dog"
    assert sampled(tokenizer, chat, "write <think> first</s>").text == "write <think> first"
    # What the model adds right after its thought belongs to it.
    again = sampled(tokenizer, chat, "<think>a</think>\n<think>b</think>dog</s>")
    assert again.text == "dog"


def test_a_user_who_spells_an_opening_mark_opens_no_thought() -> None:
    tokenizer = thinker("deepseek_r1_distill", SAMPLED["deepseek_r1_distill"][0])
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>\\n", "")
    chat = Chat(tokenizer, ChatSettings())
    prompt = chat.prompt_ids([Message("user", "<think>")])
    ids = tokenizer("a dog</s>", add_special_tokens=False)["input_ids"]
    assert make_response(chat, prompt, ids, [0.0] * len(ids), ()).text == "a dog"


def test_a_closing_mark_that_is_no_token_is_refused_unless_thoughts_are_kept() -> None:
    for name, (tokens, _, _) in SAMPLED.items():
        if "</think>" not in tokens:
            continue
        tokenizer = thinker(name, tokens[:-1])
        with pytest.raises(UserError, match=r"chat\.thinking: hide: .*'</think>'.* tokens.*allowed: .*keep"):
            Chat(tokenizer, ChatSettings())
        assert not Chat(tokenizer, ChatSettings(thinking="keep")).thoughts.possible


def test_templates_without_thoughts_need_no_mark() -> None:
    for name in ("zephyr", "llama 3", "mistral", "vicuna"):
        chat = Chat(FORMATS[name].tokenizer(), ChatSettings())
        assert not chat.thoughts.expected and engine_stops(chat, ["x"]) == ["x"]
