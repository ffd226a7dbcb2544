"""Texts that are conversations or lists written out: JSON, or Python as pandas writes it. Torch-free."""

import ast
import json
import re
import warnings

from pydantic import JsonValue

from pipeline.data.files.bounds import unsound
from pipeline.data.forms.roles import CALLS, ROLES

_OBJECT = re.compile(r"""\s*(?:array\(\s*)?\[?\s*\{\s*(['"])(?:role|content|from|value|tool_calls)\1\s*:""")
_NAMES = "|".join(sorted((*ROLES, *CALLS), key=len, reverse=True))
_ROLE = re.compile(rf"""(['"])(?:role|from)\1\s*:\s*(['"])\s*(?:{_NAMES})\s*\2""", re.IGNORECASE)
_CONTENT = re.compile(r"""(['"])(?:content|value|tool_calls|function_call)\1\s*:""")
# Between the objects of a list that numpy wrote, there is no comma.
_NO_COMMA = re.compile(r"\}\s*\n\s*\{")
_ARRAY = re.compile(r"array\((.*), dtype=object\)", re.DOTALL)
# Python's parser needs about a hundred times the text's size.
_LONGEST = 1 << 18


def is_spelled(text: str) -> bool:
    """Return whether a text is a conversation, or one message, written out: objects with a known role and content.

    Other objects with such keys, {"from": "NYC", "value": 3}, are text. What begins as a conversation and cannot be
    read to its end is one.
    """
    if _OBJECT.match(text) is None or _ROLE.search(text) is None or _CONTENT.search(text) is None:
        return False
    try:
        found = read_spelled(text)
    except ValueError:
        return True
    turns = found if isinstance(found, list) else [found]
    # A turn of an unknown role beside others is a mistake that ``parse`` names, not text.
    return any(map(_is_turn, turns))


def _is_turn(value: JsonValue) -> bool:
    if not isinstance(value, dict):
        return False
    role = value.get("role", value.get("from"))
    known = isinstance(role, str) and role.strip().casefold() in (*ROLES, *CALLS)
    content = value.get("content", value.get("value"))
    calls = value.get("tool_calls") or value.get("function_call")
    return known and (isinstance(content, str | list | dict) or bool(calls))


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
