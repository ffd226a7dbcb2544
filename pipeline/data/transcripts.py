"""Prompts that stand inside the responses: transcripts as in Anthropic's HH, and what two texts begin with alike."""

import re

from pipeline.types import Message, Role

_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether ``text`` is a dialogue in the form of HH: ``\\n\\nHuman: ... \\n\\nAssistant: ...``."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript, spaces around each left out; a last turn may be empty."""
    parts = _TURN.split(text.lstrip())[1:]
    return tuple(Message(_SPEAKERS[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def common_start(one: str, other: str) -> str:
    """What two texts begin with alike, up to a border between words, the spaces at its end left out.

    TRL's ``extract_prompt`` may cut inside a word (``bl`` of ``blue`` and ``black``); here none is.
    """
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    while length and any(length < len(text) and not text[length].isspace() for text in (one, other)):
        length -= 1
    return one[:length].rstrip()
