"""Parse one cell of a user's row into the required form, or report its fault.

Every fault names the column and says what is allowed. Torch-free.
"""

import math

from pydantic import JsonValue

from pipeline.config import Votes
from pipeline.data.forms.transcripts import is_transcript, transcript
from pipeline.types import Message, Role

# ShareGPT files use human and gpt.
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
# CSV has no booleans.
_TRUTHS = {"true": True, "false": False}


class FaultError(Exception):
    """A fault in one row."""


def absent(value: JsonValue) -> bool:
    """Return whether a cell is empty: null, or the empty string that CSV uses for it."""
    return value is None or value == ""


def find(values: dict[str, JsonValue], column: str) -> JsonValue:
    """Return the cell of ``column``, or None. ``a.b`` is field b of a, or of each object in a list a."""
    if column in values or "." not in column:
        return values.get(column)
    outer, _, field = column.rpartition(".")
    match find(values, outer):
        case dict() as inner:
            return inner.get(field)
        case list() as inner:
            return [item.get(field) if isinstance(item, dict) else None for item in inner]
    return None


def required(values: dict[str, JsonValue], column: str) -> JsonValue:
    """Return the cell of ``column``. Raises ``FaultError`` if it is missing or null."""
    found = find(values, column)
    if found is None:
        if column.partition(".")[0] in values:
            raise FaultError(f"{column}: is null")
        raise FaultError(f"no column {column!r}; it has {', '.join(map(repr, values)) or 'none'}")
    return found


def optional_text(values: dict[str, JsonValue], column: str) -> str | None:
    """Return a text, or the assistant's turn of a list of messages; None if the cell is empty."""
    value = find(values, column)
    if absent(value):
        return None
    return completion(value, (), column)


def plain_answer(values: dict[str, JsonValue], column: str) -> str | None:
    """Return a string or number as text; None if the cell is empty."""
    value = find(values, column)
    if absent(value):
        return None
    if isinstance(value, list | dict):
        raise FaultError(f"{column}: must be a string or number, not {kind(value)}")
    return str(value)


def optional_number(values: dict[str, JsonValue], column: str) -> float | None:
    """Return a finite number; None if the cell is empty."""
    value = find(values, column)
    return None if absent(value) else number(value, column)


def optional_probability(values: dict[str, JsonValue], column: str) -> float | None:
    """Return a number from 0 to 1; None if the cell is empty."""
    found = optional_number(values, column)
    if found is not None and not 0 <= found <= 1:
        raise FaultError(f"{column}: {found:g}; a probability is from 0 to 1")
    return found


def number(value: JsonValue, column: str) -> float:
    """Parse a finite number, or the text of one (CSV holds only text)."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise FaultError(f"{column}: must be a finite number, not {kind(value)}")
    return found


def truth(value: JsonValue, column: str) -> bool:
    """Parse true or false, or the text of either."""
    found = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise FaultError(f"{column}: must be true or false, not {kind(value)}")
    return found


def rewards(value: JsonValue, column: str) -> tuple[float, ...]:
    """Return one reward per response: a finite number, true or false (1 and 0), or the mean of a list of ratings."""
    if not isinstance(value, list):
        raise FaultError(f"{column}: must be a list of numbers, not {kind(value)}")
    return tuple(_reward(item, f"{column}, item {place}") for place, item in enumerate(value, 1))


def _reward(value: JsonValue, column: str) -> float:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, list) and value:
        return sum(number(item, column) for item in value) / len(value)
    return number(value, column)


def votes(value: JsonValue, settings: Votes, column: str) -> tuple[int, int, int]:
    """Count the votes (a list, or one vote) for chosen, for rejected and for neither."""
    given = [str(vote).strip() for vote in (value if isinstance(value, list) else [value])]
    meanings = [str(vote) for vote in (settings.chosen, settings.rejected, settings.tie)]
    unknown = next((vote for vote in given if vote not in meanings), None)
    if unknown is not None or not given:
        chosen, rejected, tie = map(repr, meanings)
        what = "no votes" if unknown is None else f"vote {unknown!r}"
        raise FaultError(f"{column}: {what}; votes are {chosen} (chosen), {rejected} (rejected) and {tie} (tie)")
    return given.count(meanings[0]), given.count(meanings[1]), given.count(meanings[2])


def completions(value: JsonValue, prompt: tuple[Message, ...], column: str) -> tuple[str, ...]:
    """Return at least two responses, each in a form that ``completion`` accepts."""
    if not isinstance(value, list):
        raise FaultError(f"{column}: must be a list of responses, not {kind(value)}")
    if len(value) < 2:
        raise FaultError(f"{column}: {len(value)} in the list; at least 2 responses make a comparison")
    return tuple(completion(item, prompt, f"{column}, item {place}") for place, item in enumerate(value, 1))


def messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    """Parse a list of {role, content}; a string is one user message."""
    if isinstance(value, str):
        if not value.strip():
            raise FaultError(f"{column}: is empty")
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise FaultError(f"{column}: must be a string or a list of messages, not {kind(value)}")
    return tuple(_message(item, place, column) for place, item in enumerate(value, 1))


def _message(item: JsonValue, place: int, column: str) -> Message:
    """Parse one turn: {role, content}, or {from, value} as in ShareGPT; content is text or a list of text parts."""
    turn = item if isinstance(item, dict) else {}
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise FaultError(f"{column}: message {place} must have the strings role and content")
    if role not in _ROLES:
        raise FaultError(f"{column}: message {place} has role {role!r}; allowed: {', '.join(_ROLES)}")
    return Message(_ROLES[role], content)


def prompt_messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    """Parse messages that end with the user's turn."""
    found = messages(value, column)
    if found[-1].role != "user":
        raise FaultError(f"{column}: must end with a user message, not with {found[-1].role!r}")
    return found


def completion(value: JsonValue, prompt: tuple[Message, ...], column: str) -> str:
    """Return the assistant's text from a string, the assistant's turn, or the whole conversation or transcript."""
    if isinstance(value, str) and not (prompt and is_transcript(value)):
        return value
    found = transcript(value) if isinstance(value, str) else messages(value, column)
    if prompt and found[: len(prompt)] == prompt:
        found = found[len(prompt) :]
    if len(found) != 1 or found[0].role != "assistant":
        roles = ", ".join(message.role for message in found)
        raise FaultError(f"{column}: must hold one assistant turn after the prompt, but holds: {roles or 'nothing'}")
    return found[0].content


def kind(value: JsonValue) -> str:
    """Return a short description of a value for error messages."""
    return {"NoneType": "null", "dict": "an object", "list": "a list" if value else "an empty list"}.get(
        type(value).__name__, f"{type(value).__name__} {value!r}"[:60]
    )
