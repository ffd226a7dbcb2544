"""Templates with tools, with thoughts and without a system role: what of a conversation they write, and its tokens."""

import json

import pytest

from pipeline.config import ChatSettings
from pipeline.errors import RefusedTurnsError
from pipeline.models.chat import Chat
from pipeline.models.rendering.unread import LeftOut
from pipeline.types import Message
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer

# Each behaves as a published template does, written anew over the tests' special tokens.
TOOLS = """{{ '<s>' }}{% if tools %}{{ '<|user|>tools ' + tools | tojson + '<|end|>' }}{% endif %}
{%- for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}
{%- if m['role'] == 'tool' %}{{ 'result ' }}{% endif %}
{%- if m['tool_calls'] %}{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}
{%- else %}{{ m['content'] | trim }}{% endif %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
THOUGHTS = """{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' }}
{%- set parts = m['content'].split('</think>') %}
{%- set own = parts[0].split('<think>')[-1] if parts | length > 1 else '' %}
{%- if loop.last %}{{ '<think>\n' + (m['reasoning_content'] or own).strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- parts[-1].lstrip('\n') + '<|end|>\n' }}
{%- else %}{{ '<|user|>' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
OPENED = """{% for m in messages %}{% if m['role'] == 'assistant' %}
{{- '<|assistant|>' + m['content'].split('</think>')[-1] + '</s>' }}
{%- else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"""
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)

USER = (Message("user", "the cat"),)
CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"what": "x"}}}]})
TOOL = Message("tools", json.dumps([{"type": "function", "function": {"name": "find"}}]))


def chat(template: str | None) -> Chat:
    return Chat(tiny_tokenizer(template=template), ChatSettings(thinking="keep"))


def said(made: Chat, text: str, extra: str = "", messages: tuple[Message, ...] = USER) -> str:
    return made.spell(made.response_ids(messages, text, extra=extra))


def test_an_answer_with_a_thought_is_what_the_template_makes_of_it() -> None:
    made = chat(THOUGHTS)
    assert said(made, "the mat") == "<think>\n\n</think>\n\nthe mat<|end|>"
    assert said(made, "<think>\nso\n</think>\n\nthe mat") == "<think>\nso\n</think>\n\nthe mat<|end|>"
    assert said(made, "the mat", '{"reasoning_content": "so"}') == "<think>\nso\n</think>\n\nthe mat<|end|>"
    assert made.continues(USER, "<think>\nso\n</think>\n\nthe mat")
    # The assistant's own markup is no header that it may not write; anyone else's is.
    assert made.spelled("<think>\nso\n</think>\n\nthe mat") == []
    assert made.spelled("<think>so", "user") == [("<think>", None)]


def test_a_thought_that_the_prompt_opens_is_not_opened_again() -> None:
    made = chat(OPENED)
    assert made.spell(made.prompt_ids(USER)).endswith("<|assistant|><think>\n")
    assert said(made, "<think>\nso\n</think>\n\nthe mat") == "so\n</think>\n\nthe mat</s>"
    assert said(made, "the mat") == "the mat</s>"


def test_tools_calls_and_results_are_rendered_by_the_template() -> None:
    made = chat(TOOLS)
    history = (TOOL, *USER, Message("assistant", "", CALL), Message("tool", "found it", '{"name": "find"}'))
    call = '{"name": "find", "arguments": {"what": "x"}}'
    assert made.spell(made.prompt_ids(history)) == (
        '<s><|user|>tools [{"type": "function", "function": {"name": "find"}}]<|end|><|user|>the cat<|end|>'
        f"<|assistant|>{call}<|end|><|user|>result found it<|end|><|assistant|>"
    )
    assert said(made, "", CALL, history) == f"{call}<|end|>"
    assert said(made, " the mat ", "", history) == "the mat<|end|>"
    assert made.left_out(history, [Message("assistant", "", CALL)]).content == ()


def test_special_tokens_are_control_tokens_only_where_the_template_writes_them() -> None:
    made = chat(TEMPLATE.replace("m['content']", "('<pad>' if m['role'] == 'assistant' else '') + m['content']"))
    plain, spelled = made.response_ids(USER, "the mat"), made.response_ids(USER, "the <pad> mat")
    pad = tiny_tokenizer().convert_tokens_to_ids("<pad>")
    assert plain[0] == pad and spelled.count(pad) == 1 and spelled[0] == pad
    assert made.spell(spelled) == "<pad>the <pad> mat<|end|>"


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        (TEMPLATE, ["tools", "tool calls", "reasoning"]),
        (TOOLS, ["text beside tool calls", "reasoning"]),
        (THOUGHTS, ["tools", "tool calls"]),
        (None, ["tools", "tool calls", "tool results", "reasoning"]),
    ],
)
def test_what_a_template_leaves_out_is_said(template: str | None, left_out: list[str]) -> None:
    history = (TOOL, *USER, Message("assistant", "", CALL), Message("tool", "found it"))
    answer = Message("assistant", "y", json.dumps({"reasoning_content": "so", **json.loads(CALL)}))
    assert list(chat(template).left_out(history, [answer]).content) == left_out
    assert chat(template).left_out(USER, [Message("assistant", "y")]) == LeftOut()


def test_refused_turns_are_an_error_of_their_own() -> None:
    made, talk = chat(NO_SYSTEM), (Message("system", "Be brief."), *USER)
    with pytest.raises(RefusedTurnsError, match="refuses turns system, user: System role not supported"):
        made.prompt_ids(talk)
    assert made.prompt_ids_if_written(talk) is None and made.prompt_ids_if_written(USER) is not None
