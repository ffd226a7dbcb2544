"""Formats of current models and the situations of conversations: ids and masks are those of the template's own text.

Every cell has its outcome here. Where nothing is said, prompt and response are what transformers renders for the whole
conversation, with the loss on the response alone.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from pipeline.errors import RefusedTurnsError
from pipeline.models.rendering.template import Rendering
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.types import Message
from reward_models.local.conversations import DAY as REWARD_DAY
from reward_models.local.conversations import Conversations
from tests.support.current_formats import DAY, FAMILIES, Family

PARAMETERS = {"type": "object", "properties": {"what": {"type": "string"}}}
FUNCTION = {"name": "find", "description": "looks up", "parameters": PARAMETERS}
TOOLS = Message("tools", json.dumps([{"type": "function", "function": FUNCTION}]))
DOCUMENTS = Message("documents", json.dumps([{"doc_id": 1, "title": "t", "text": "d"}]))
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "find", "arguments": {"what": "x"}}}
CALLS = json.dumps({"tool_calls": [CALL]})
RESULT = Message("tool", "found", json.dumps({"name": "find", "tool_call_id": "abcdefghi"}))
SYSTEM, BRIEF, DEVELOPER = Message("system", "be kind"), Message("system", "be brief"), Message("developer", "be kind")
USER, WHY, DOG = Message("user", " the cat "), Message("user", "why?"), Message("assistant", "a dog")

Talk = tuple[tuple[Message, ...], Message]
SITUATIONS: dict[str, Talk] = {
    "one turn": ((USER,), DOG),
    "several turns": ((USER, DOG, WHY), DOG),
    "system": ((SYSTEM, USER), DOG),
    "edges": ((USER,), Message("assistant", " a dog \n")),
    "empty answer": ((USER,), Message("assistant", "")),
    "reasoning": ((USER,), Message("assistant", "a dog", '{"reasoning_content": "so"}')),
    "thought in the text": ((USER,), Message("assistant", "<think>\nso\n</think>\n\na dog")),
    "call": ((TOOLS, USER), Message("assistant", "", CALLS)),
    "text and call": ((TOOLS, USER), Message("assistant", "I look.", CALLS)),
    "result": ((TOOLS, USER, Message("assistant", "", CALLS), RESULT), DOG),
    "developer": ((DEVELOPER, USER), DOG),
    "two system turns": ((SYSTEM, BRIEF, USER), DOG),
    "late system turn": ((USER, DOG, SYSTEM, WHY), DOG),
    "two user turns": ((USER, WHY), DOG),
    "two answers": ((USER, DOG, DOG, WHY), DOG),
    "documents": ((DOCUMENTS, USER), DOG),
}
ROLES = ("two system turns", "late system turn", "two user turns", "two answers")
# Conversations that the template refuses: rows with them are a counted fault, with their numbers.
REFUSED = {
    "gemma 2": ("system", "developer", "result", *ROLES),
    "gemma 3": ("result", *ROLES),
    "mistral v3": ROLES,
    "mistral nemo": ROLES,
    "mistral small": ROLES[:2],
    "command r7b": ("documents",),
}
_R1, _QWEN, _GLM = "<｜end▁of▁sentence｜>", "<|im_end|>", "<|user|>"
_ACTION = (
    '<|START_THINKING|><|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "find", '
    '"parameters": {"what": "x"}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>'
)
# Responses where the answered prompt is rendered otherwise than the open one: they follow the prompt as it is asked.
APART = {
    # The prompt says that there is no thought; the answer has one.
    "qwen 3, no thinking": dict.fromkeys(
        ("reasoning", "thought in the text"), f"<think>\nso\n</think>\n\na dog{_QWEN}"
    ),
    "glm 4.5, no thinking": {
        "reasoning": f"<think>so</think>\na dog{_GLM}",
        "thought in the text": f"\n<think>\nso\n</think>\n\na dog{_GLM}",
    },
    # The system's text stands before the last question, and nowhere once that is answered.
    "mistral v3": {"system": " a dog</s>", "developer": " a dog</s>"},
    "mistral nemo": {"system": "a dog</s>", "developer": "a dog</s>"},
    # The prompt opens a thought that no rendering of an answer has.
    "deepseek r1": {
        **dict.fromkeys([name for name in SITUATIONS if name != "result"], f"a dog{_R1}"),
        "edges": f" a dog \n{_R1}",
        "empty answer": _R1,
        "thought in the text": f"so\n</think>\n\na dog{_R1}",
        "text and call": f"I look.{_R1}",
        "call": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
        f'{{"what": "x"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>{_R1}',
    },
    # The prompt opens a response, and a call is none.
    "command r7b": dict.fromkeys(("call", "text and call"), _ACTION),
}
# Of these, the prompt's ids still are where the policy would be asked for this answer, so they are no fault.
ALIKE = {
    ("mistral v3", "system"),
    ("mistral v3", "developer"),
    ("mistral nemo", "system"),
    ("mistral nemo", "developer"),
    ("deepseek r1", "thought in the text"),
}
NO_TOOLS = ("gemma 2", "gemma 3", "phi 4", "smollm 3", "smollm 3, no thinking")
THINKING = ("qwen 3", "qwen 3, no thinking", "gpt-oss", "glm 4.5", "glm 4.5, no thinking")
TEXT_LOST = ("llama 3.1", "llama 3.2", "mistral v3", "mistral nemo", "mistral small", "command r7b")


def left_out(family: str, situation: str) -> set[str]:
    """What the family's template does not write of the situation."""
    calling = situation in ("call", "text and call", "result")
    lost = {
        "reasoning": situation == "reasoning" and family not in THINKING,
        "documents": situation == "documents" and family not in ("granite 3.3", "command r7b"),
        "tools": calling and family in (*NO_TOOLS, "deepseek r1"),
        "tool calls": (calling and family in (*NO_TOOLS, "granite 3.3"))
        or (situation == "text and call" and family == "deepseek r1"),
        "tool results": situation == "result" and family == "phi 4",
        "text beside tool calls": situation == "text and call" and family in TEXT_LOST,
        "system turns": (situation == "two system turns" and family in ("deepseek r1", "gpt-oss"))
        or (situation in ("two system turns", "late system turn") and family.startswith("smollm"))
        or (situation == "late system turn" and family == "gpt-oss"),
    }
    return {part for part, is_lost in lost.items() if is_lost}


@pytest.fixture(autouse=True)
def a_fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            return cls.fromisoformat(DAY)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def as_transformers_takes(family: Family, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns as people give them to this template."""
    found = []
    for message in messages:
        turn: dict[str, Any] = message.plain
        if turn["role"] == "developer" and family.template != "gpt_oss":
            turn["role"] = "system"
        if "reasoning_content" in turn:
            turn[family.reasoning] = turn.pop("reasoning_content")
        if "tool_calls" in turn:
            arguments = '{"what": "x"}' if family.arguments_as_text else {"what": "x"}
            turn["tool_calls"] = [{**CALL, "function": {"name": "find", "arguments": arguments}}]
            turn["content"] = turn["content"] or family.no_text
        if message.is_turn:
            found.append(turn)
    return found


def rendered(family: Family, messages: Sequence[Message], **options: Any) -> list[int]:
    besides = {message.role: message.value for message in messages if not message.is_turn}
    tokenizer = family.tokenizer()
    options |= {**family.kwargs, "tools": besides.get("tools"), "documents": besides.get("documents")}
    text = tokenizer.apply_chat_template(as_transformers_takes(family, messages), tokenize=False, **options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell(name: str, situation: str) -> None:
    family, (messages, answer) = FAMILIES[name], SITUATIONS[situation]
    chat = family.chat
    if situation in REFUSED.get(name, ()):
        with pytest.raises(RefusedTurnsError, match="its chat template refuses turns"):
            chat.prompt_ids(messages)
        return
    asked = chat.prompt_ids(messages)
    said = chat.response_ids(messages, answer.content, extra=answer.extra)
    assert list(asked) == rendered(family, messages, add_generation_prompt=True)
    apart = APART.get(name, {}).get(situation)
    if apart is None:
        whole = rendered(family, [*messages, answer])
        # A template may write no end token, or a line break after it.
        written = min(len(whole), len(asked) + len(said))
        assert [*asked, *said][:written] == whole[:written]
        assert len(asked) + len(said) - written <= (name.startswith("glm"))
    else:
        assert chat.spell(said) == apart
    assert said[-1] in chat.end_ids
    follows = apart is None or (name, situation) in ALIKE
    assert chat.continues(messages, answer.content, answer.extra) == follows
    assert set(chat.left_out(messages, [answer]).content) == left_out(name, situation)
    batch = collate([Example.text("x", asked, said)])
    assert batch.ids[0].tolist() == [*asked, *said]
    assert batch.mask[0].tolist() == [False] * len(asked) + [True] * len(said)


def test_calls_end_as_the_family_ends_them() -> None:
    ends = {"gpt-oss": "<|call|>", "glm 4.5": "<|observation|>", "llama 3.1": "<|eot_id|>", "qwen 3": "<|im_end|>"}
    for name, end in ends.items():
        messages, answer = SITUATIONS["call"]
        said = FAMILIES[name].chat.response_ids(messages, answer.content, extra=answer.extra)
        assert FAMILIES[name].chat.token(said[-1]) == end
    assert FAMILIES["glm 4.5"].chat.token(FAMILIES["glm 4.5"].chat.end_id) == "<|user|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_reward_models_read_the_template_s_own_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    shared = Rendering(family.kwargs, None, str(tokenizer.chat_template))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            return cls.fromisoformat(REWARD_DAY)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    conversations = Conversations(tokenizer, rendering=shared)
    for situation in ("one turn", "several turns", "edges", "reasoning", "result"):
        messages, answer = SITUATIONS[situation]
        if situation not in REFUSED.get(name, ()):
            (ids,) = conversations.encode([(messages, answer)])
            assert list(ids) == rendered(family, [*messages, answer])


def test_only_a_reward_model_with_the_policy_s_template_gets_its_values() -> None:
    family = FAMILIES["glm 4.5, no thinking"]
    own = str(family.tokenizer().chat_template)
    talk = [(SITUATIONS["one turn"][0], SITUATIONS["one turn"][1])]
    plain, shared, other = (
        Conversations(family.tokenizer(), rendering=given)
        for given in (None, Rendering(family.kwargs, None, own), Rendering(family.kwargs, None, own + " "))
    )
    assert plain.encode(talk) == other.encode(talk) != shared.encode(talk)
    assert plain.given == other.given == {} and shared.given["template_kwargs"] == {"enable_thinking": False}


def test_values_of_a_row_come_before_those_of_the_run() -> None:
    chat = FAMILIES["qwen 3, no thinking"].chat
    thinks = Message("chat_template_kwargs", '{"enable_thinking": true}')
    assert chat.prompt_ids((thinks, USER)) == FAMILIES["qwen 3"].chat.prompt_ids((USER,)) != chat.prompt_ids((USER,))
    unknown = Message("chat_template_kwargs", '{"enable_thinking": true, "effort": 3}')
    assert chat.left_out((unknown, USER), [DOG]).content == ("chat_template_kwargs effort",)
    assert chat.template_hash != FAMILIES["qwen 3"].chat.template_hash
