"""Prompts inside responses: transcripts as in Anthropic's HH, and the common start of two texts."""

import re

from pipeline.types import Message, Role

_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Return whether ``text`` is a dialogue in HH's form: ``\\n\\nHuman: ... \\n\\nAssistant: ...``."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript(text: str) -> tuple[Message, ...]:
    """Return the turns of a transcript, each stripped of spaces; the last turn may be empty."""
    parts = _TURN.split(text.lstrip())[1:]
    return tuple(Message(_SPEAKERS[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def common_start(one: str, other: str) -> str:
    """Return the common start of two texts, up to a word boundary and without spaces at its end.

    TRL's ``extract_prompt`` may cut inside a word (``bl`` of ``blue`` and ``black``); this does not.
    """
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    while length and any(length < len(text) and not text[length].isspace() for text in (one, other)):
        length -= 1
    return one[:length].rstrip()
