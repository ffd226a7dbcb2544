"""What a row's prompt holds besides turns: tools, documents, template variables, a rubric; images, which none reads.

Torch-free.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue

from pipeline.config import Columns
from pipeline.config.policy import RESERVED
from pipeline.data.forms.cells import FaultError, absent, kind
from pipeline.data.forms.paths import find, first_name
from pipeline.data.forms.turns import Turns, as_json, plain_json, without_nulls
from pipeline.types import Message

# Columns of images and the like.
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# What data sets call a criterion, and its weight.
_TEXT, _WEIGHT = ("criterion", "description", "text"), ("weight", "points")
MOST_CRITERIA = 64


def besides(values: dict[str, JsonValue], columns: Columns) -> Turns:
    """Return what the row's prompt holds besides turns, as messages that stand before them.

    Raises ``FaultError`` for values of another form.
    """
    readers = (
        (columns.chat_template_kwargs, _variables),
        (columns.tools, _tools),
        (columns.documents, _documents),
    )
    return tuple(turn for name, read in readers if name is not None for turn in read(find(values, name), name))


def with_media(turns: Sequence[Message], values: dict[str, JsonValue], columns: Columns) -> Turns:
    """Return the turns; the last one of the user gets the number of the row's images and the like as a field.

    No chat template reads it, so that they are counted as left out.
    """
    named = {first_name(str(name)) for held in columns.__dict__.values() for name in _names(held)}
    found = {name: values.get(name) for name in _MEDIA if name not in named}
    held: dict[str, JsonValue] = {
        name: len(one) if isinstance(one, list) else 1
        for name, one in found.items()
        if not absent(one) and one not in ([], {})
    }
    place = next((place for place in reversed(range(len(turns))) if turns[place].role == "user"), None)
    if not held or place is None:
        return tuple(turns)
    extra = json.dumps({**held, **turns[place].fields}, ensure_ascii=False)
    return (*turns[:place], replace(turns[place], extra=extra), *turns[place + 1 :])


def _names(held: object) -> tuple[object, ...]:
    return held if isinstance(held, tuple) else () if held is None else (held,)


def _tools(value: JsonValue, column: str) -> Turns:
    listed = None if absent(value) else plain_json(value, column)
    if not listed:
        return ()
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise FaultError(f"{column}: must be a list of tools, each an object, not {kind(listed)}")
    return (Message("tools", as_json(listed, column)),)


def _documents(value: JsonValue, column: str) -> Turns:
    """Read a list of objects or texts, its JSON, or a single one."""
    listed = plain_json(value, column) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else value
    if absent(listed) or listed == []:
        return ()
    found = listed if isinstance(listed, list) else [listed]
    each: list[JsonValue] = [{"text": one} if isinstance(one, str) else one for one in found]
    if not all(isinstance(one, dict) for one in each):
        raise FaultError(f"{column}: must be a list of documents, each an object or a text, not {kind(listed)}")
    return (Message("documents", as_json(without_nulls(each), column)),)


def _variables(value: JsonValue, column: str) -> Turns:
    held = None if absent(value) else plain_json(value, column)
    if not held:
        return ()
    if not isinstance(held, dict):
        raise FaultError(f"{column}: must be an object of the chat template's variables, not {kind(held)}")
    own = next((name for name in RESERVED if name in held), None)
    if own is not None:
        raise FaultError(f"{column}: {own} is no variable to set; the row's other columns decide it")
    return (Message("chat_template_kwargs", as_json(held, column)),)


def rubric_cell(values: dict[str, JsonValue], column: str) -> str:
    """Return a row's rubric as JSON, [[criterion, weight], ...]; empty if the cell is.

    It is a list of texts, or of objects with ``criterion`` and optionally ``weight``, or such a list spelled as JSON.

    Raises:
        FaultError: another form, an empty or repeated criterion, too many, or a weight that is not above 0.
    """
    value = find(values, column)
    if absent(value) or value == []:
        return ""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise FaultError(f"{column}: must be a list of criteria, not a text") from None
    if not isinstance(value, list):
        raise FaultError(f"{column}: must be a list of criteria, not {kind(value)}")
    if len(value) > MOST_CRITERIA:
        raise FaultError(f"{column}: {len(value)} criteria; at most {MOST_CRITERIA}")
    found = [_criterion(item, f"{column}[{place}]") for place, item in enumerate(value)]
    texts = [text for text, _ in found]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise FaultError(f"{column}[{place}]: the same criterion as {column}[{texts.index(text)}]")
    return json.dumps(found, ensure_ascii=False)


def _criterion(item: JsonValue, place: str) -> tuple[str, float]:
    given: dict[str, JsonValue] = item if isinstance(item, dict) else {"criterion": item}
    text = next((given[name] for name in _TEXT if name in given), None)
    if not isinstance(text, str) or not text.strip():
        raise FaultError(f"{place}: must be a text, or an object with a text under criterion, not {kind(item)}")
    weight = next((given[name] for name in _WEIGHT if name in given), 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise FaultError(f"{place}: weight {weight!r}; must be a number above 0")
    return text.strip(), float(weight)
