"""Thoughts of an assistant's turn, under the name and in the place that a chat template has for them. Torch-free."""

import re
from collections.abc import Callable, Sequence

from pipeline.errors import RefusedTurnsError

Turn = dict[str, object]
FIELD = "reasoning_content"
# The names that templates have for thoughts, that of most templates first.
_NAMES = (FIELD, "reasoning", "thinking")
_INLINE = re.compile(r"\s*<think>(.*?)</think>\s*(.*)\Z", re.DOTALL)
_PROBE = "prefloopthought"
_ASKED: Turn = {"role": "user", "content": "x"}


def thought_field(source: str) -> str:
    """Return the name that a template's ``source`` has for thoughts."""
    return next((name for name in _NAMES if re.search(rf"\.{name}\b|[\"']{name}[\"']", source)), FIELD)


def renamed(turn: Turn, name: str) -> Turn:
    """Return the turn with its thoughts under ``name``."""
    if FIELD not in turn or name == FIELD:
        return turn
    return {name if key == FIELD else key: value for key, value in turn.items()}


def taken_apart(turn: Turn) -> Turn:
    """Return an assistant's turn whose text begins with a thought with the thought in its own field."""
    found = _INLINE.match(str(turn.get("content") or ""))
    if found is None or turn.get("role") != "assistant" or FIELD in turn:
        return turn
    return {**turn, "content": found[2], FIELD: found[1].strip("\n")}


def doubles_thoughts(render: Callable[[Sequence[Turn]], str]) -> bool:
    """Whether a template writes its own tags before a text that begins with a thought, and has a field for thoughts.

    ``render`` takes turns with thoughts in ``FIELD``, and raises ``RefusedTurnsError``.
    """
    inline: Turn = {"role": "assistant", "content": f"<think>\n{_PROBE}\n</think>\n\ny"}
    try:
        as_text, as_field = (render([_ASKED, turn]) for turn in (inline, taken_apart(inline)))
    except RefusedTurnsError:
        return False
    return _PROBE in as_field and as_text.count("<think>") > as_field.count("<think>") > 0
