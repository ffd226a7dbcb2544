"""A prompt's rubric: criteria that a judge scores one by one, each with a weight. Torch-free."""

import json
import math

from pydantic import JsonValue

from pipeline.data.forms.cells import FaultError, absent, kind
from pipeline.data.forms.paths import find

# What data sets call a criterion, and its weight.
_TEXT, _WEIGHT = ("criterion", "description", "text"), ("weight", "points")
MOST_CRITERIA = 64


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
