"""A prompt's rubric: ``Prompt.rubric`` is [[criterion, weight], ...] as JSON, and empty without one. Torch-free."""

import json

from pipeline.types import Prompt


def criteria_of(prompt: Prompt) -> tuple[tuple[str, float], ...]:
    """Return the criteria of the prompt's rubric, each with its weight."""
    return tuple((text, weight) for text, weight in json.loads(prompt.rubric)) if prompt.rubric else ()
