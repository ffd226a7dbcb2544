"""What a row's prompt holds besides its turns: tools, documents, template variables; and images, which none reads.

Torch-free.
"""

import json
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
