"""One cell of a user's row: its value in the form that is wanted, or the fault with it.

Every fault names the column and says what is allowed. Torch-free.
"""

import math

from pydantic import JsonValue

from pipeline.types import Message, Role

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
# CSV has no booleans.
_TRUTHS = {"true": True, "false": False}


class FaultError(Exception):
    """What is wrong with one row."""


def absent(value: JsonValue) -> bool:
    """Whether a cell holds nothing: null, or the empty text that CSV has for it."""
    return value is None or value == ""


def required(values: dict[str, JsonValue], column: str) -> JsonValue:
    """The cell of ``column``, which must be there."""
    if column not in values:
        raise FaultError(f"no column {column!r}; it has {', '.join(map(repr, values)) or 'none'}")
    if values[column] is None:
        raise FaultError(f"{column}: is null")
    return values[column]


def optional_text(values: dict[str, JsonValue], column: str) -> str | None:
    """A text, or the assistant's turn of a list of messages; None where there is nothing."""
    value = values.get(column)
    if absent(value):
        return None
    return completion(value, (), column)


def plain_answer(values: dict[str, JsonValue], column: str) -> str | None:
    """A string or number as text; None where there is nothing."""
    value = values.get(column)
    if absent(value):
        return None
    if isinstance(value, list | dict):
        raise FaultError(f"{column}: must be a string or number, not {kind(value)}")
    return str(value)


def optional_number(values: dict[str, JsonValue], column: str) -> float | None:
    """A finite number; None where there is nothing."""
    value = values.get(column)
    return None if absent(value) else number(value, column)


def optional_probability(values: dict[str, JsonValue], column: str) -> float | None:
    """A number from 0 to 1; None where there is nothing."""
    found = optional_number(values, column)
    if found is not None and not 0 <= found <= 1:
        raise FaultError(f"{column}: {found:g}; a probability is from 0 to 1")
    return found


def number(value: JsonValue, column: str) -> float:
    """A finite number, or the text of one (CSV holds nothing else)."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise FaultError(f"{column}: must be a finite number, not {kind(value)}")
    return found


def truth(value: JsonValue, column: str) -> bool:
    """True or false, or the text of either."""
    found = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise FaultError(f"{column}: must be true or false, not {kind(value)}")
    return found


def numbers(value: JsonValue, column: str) -> tuple[float, ...]:
    """A list of finite numbers."""
    if not isinstance(value, list):
        raise FaultError(f"{column}: must be a list of numbers, not {kind(value)}")
    return tuple(number(item, f"{column}, item {place}") for place, item in enumerate(value, 1))


def completions(value: JsonValue, prompt: tuple[Message, ...], column: str) -> tuple[str, ...]:
    """A list of at least two responses, each in a form that ``completion`` takes."""
    if not isinstance(value, list):
        raise FaultError(f"{column}: must be a list of responses, not {kind(value)}")
    if len(value) < 2:
        raise FaultError(f"{column}: {len(value)} in the list; at least 2 responses make a comparison")
    return tuple(completion(item, prompt, f"{column}, item {place}") for place, item in enumerate(value, 1))


def messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    """A list of {role, content}; a string is one user message."""
    if isinstance(value, str):
        if not value.strip():
            raise FaultError(f"{column}: is empty")
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise FaultError(f"{column}: must be a string or a list of messages, not {kind(value)}")
    found = []
    for place, item in enumerate(value, 1):
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise FaultError(f"{column}: message {place} must have the strings role and content")
        if role not in _ROLES:
            raise FaultError(f"{column}: message {place} has role {role!r}; allowed: {', '.join(_ROLES)}")
        found.append(Message(_ROLES[role], content))
    return tuple(found)


def prompt_messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    """Messages that wait for the assistant."""
    found = messages(value, column)
    if found[-1].role != "user":
        raise FaultError(f"{column}: must end with a user message, not with {found[-1].role!r}")
    return found


def completion(value: JsonValue, prompt: tuple[Message, ...], column: str) -> str:
    """The assistant's text: a string, a list with the assistant's turn, or the whole conversation."""
    if isinstance(value, str):
        return value
    found = messages(value, column)
    if prompt and found[: len(prompt)] == prompt:
        found = found[len(prompt) :]
    if len(found) != 1 or found[0].role != "assistant":
        roles = ", ".join(message.role for message in found)
        raise FaultError(f"{column}: must hold one assistant turn after the prompt, but holds: {roles or 'nothing'}")
    return found[0].content


def kind(value: JsonValue) -> str:
    """A value as messages name it."""
    return {"NoneType": "null", "dict": "an object", "list": "a list" if value else "an empty list"}.get(
        type(value).__name__, f"{type(value).__name__} {value!r}"[:60]
    )
