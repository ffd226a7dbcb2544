"""Parts of a conversation besides texts, and which of them a chat template writes. Torch-free."""

import json
from collections.abc import Sequence

from pipeline.errors import RefusedTurnsError
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message

_PROBE = "prefloopprobe"
_CALL = json.dumps(
    {"tool_calls": [{"id": "callprobe", "type": "function", "function": {"name": _PROBE, "arguments": {"x": "y"}}}]}
)
_PLAIN_CALL = _CALL.replace(_PROBE, "other")
_TOOL = {"name": _PROBE, "description": "x", "parameters": {"type": "object", "properties": {}}}
_ASKED = Message("user", "x")
# Conversations that hold the probe in one part only; a template that writes the part writes the probe.
_PARTS: dict[str, tuple[Message, ...]] = {
    "tools": (Message("tools", json.dumps([{"type": "function", "function": _TOOL}])), _ASKED),
    "tool calls": (_ASKED, Message("assistant", "", _CALL)),
    "tool results": (
        _ASKED,
        Message("assistant", "", _PLAIN_CALL),
        Message("tool", _PROBE, json.dumps({"name": "other", "tool_call_id": "callprobe"})),
    ),
    "reasoning": (_ASKED, Message("assistant", "y", json.dumps({"reasoning_content": _PROBE}))),
}


def written_parts(template: ChatTemplate) -> frozenset[str]:
    """Return the parts of ``parts_of`` that the template writes."""
    found = set()
    for part, messages in _PARTS.items():
        try:
            text = template.render(messages, generation_prompt=False)
        except RefusedTurnsError:
            continue
        if _PROBE in text:
            found.add(part)
    return frozenset(found)


def parts_of(messages: Sequence[Message], answers: Sequence[Message]) -> list[str]:
    """Return the parts besides texts that a conversation has: tools, tool calls, tool results, reasoning.

    Reasoning counts in answers alone: templates leave it out of earlier turns on purpose.
    """
    extras = [json.loads(turn.extra) for turn in (*messages, *answers) if turn.extra]
    has = {
        "tools": any(turn.role == "tools" for turn in messages),
        "tool calls": any("tool_calls" in extra for extra in extras),
        "tool results": any(turn.role == "tool" for turn in messages),
        "reasoning": any(turn.extra and "reasoning_content" in json.loads(turn.extra) for turn in answers),
    }
    return [part for part in _PARTS if has[part]]
