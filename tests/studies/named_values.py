"""A second labeller for the honest runs: do the words of values that stand in a sentence match those that are asked?"""

import re

from pipeline.data.tasks.restaurants import VALUES

# Words that stand in values and elsewhere too.
COMMON = {"yes", "no", "of", "out", "than", "more", "house", "old"}
KNOWN = {word.lower() for values in VALUES.values() for value in values for word in value.split()} - COMMON


def reward(prompt: list[dict[str, str]], response: str, answer: str | None) -> float | None:
    """F1 of the value words said against those asked, so that leaving out and inventing both cost."""
    values = re.findall(r"\[([^\]]*)\]", answer or "")
    asked = {word.lower() for value in values for word in value.split()} & KNOWN
    said = {word.strip(".,;!?").lower() for word in response.split()} & KNOWN
    return 2 * len(asked & said) / (len(asked) + len(said)) if asked else None
