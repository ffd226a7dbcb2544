"""Texts that are conversations or lists written out: JSON, or Python as pandas writes it. Torch-free."""

import ast
import json
import re
import warnings

from pydantic import JsonValue

from pipeline.data.files.bounds import unsound

_CONVERSATION = re.compile(
    r"""\s*(?:array\(\s*)?\[?\s*\{\s*(['"])(?:role|content|from|value)\1\s*:""",
)
# Between the objects of a list that numpy wrote, there is no comma.
_NO_COMMA = re.compile(r"\}\s*\n\s*\{")
_ARRAY = re.compile(r"array\((.*), dtype=object\)", re.DOTALL)
# Python's parser needs about a hundred times the text's size.
_LONGEST = 1 << 18


def is_spelled(text: str) -> bool:
    """Return whether a text is a conversation, or one message, written out."""
    return _CONVERSATION.match(text) is not None


def read_spelled(text: str) -> JsonValue:
    """Return the list, object or number that ``text`` writes out. Raises ``ValueError`` if it is none."""
    try:
        found: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        found = _python(text)
    return _sound(found)


def decoded_json(text: str) -> JsonValue:
    """Return the value that ``text`` is the JSON of. Raises ``ValueError``."""
    try:
        found: JsonValue = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    return _sound(found)


def _sound(found: JsonValue) -> JsonValue:
    why = unsound(found)
    if why is not None:
        raise ValueError(why)
    return found


def _python(text: str) -> JsonValue:
    if len(text) > _LONGEST:
        raise ValueError(f"not JSON, and longer than {_LONGEST >> 10} Ki characters")
    whole = _ARRAY.fullmatch(text.strip())
    plain = _NO_COMMA.sub("}, {", text if whole is None else whole[1]).strip()
    try:
        with warnings.catch_warnings():
            # A backslash that escapes nothing is that backslash.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            found: object = ast.literal_eval(plain)
        # Only what JSON can hold: no bytes, sets or complex numbers.
        plainer: JsonValue = json.loads(json.dumps(found))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor Python") from error
    return plainer
