"""Rendered texts in pieces, which are encoded one by one, and what two of them share. Torch-free."""

import re
from collections.abc import Sequence

# A thought that the prompt has opened for the answer.
THOUGHT = re.compile(r"(<think(?:ing)?>)\s*\Z")


def after(pieces: Sequence[str], start: int) -> list[str]:
    """Return the pieces without their first ``start`` characters."""
    found = []
    for piece in pieces:
        if start < len(piece):
            found.append(piece[start:])
        start = max(0, start - len(piece))
    return found or [""]


def shared_start(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def answer_start(prompt: str, whole: str, tokens: Sequence[str]) -> int:
    """Return where the answer begins in ``whole``, which does not begin with ``prompt``.

    It is where they part, but inside none of ``tokens``; or, if the prompt has closed a thought that the answer has,
    where the thought is opened.
    """
    start = parted = shared_start(prompt, whole)
    for text in (prompt, whole):
        for token in tokens:
            at = text.find(token, max(0, parted - len(token) + 1), parted + len(token) - 1)
            start = min(start, at) if 0 <= at < parted else start
    opened = whole.rfind("<think>", 0, start)
    return opened if "</think>" in prompt[start:] and opened >= 0 else start


def asks_alike(prompt: str, whole: str, last: str, answer: str) -> bool:
    """Whether ``whole`` is ``prompt`` with ``answer``, but for one part that the template then leaves out.

    Args:
        prompt: rendered without its answer.
        whole: rendered with it; the part may not be in the last turn, nor after it.
        last: the content of the prompt's last turn.
        answer: the answer's text as it stands, with what the template writes after it.
    """
    asked = whole.removesuffix(answer)
    alike = prompt[len(prompt) - shared_start(prompt[::-1], asked[::-1]) :]
    left_out = shared_start(prompt, asked) + len(alike) >= len(asked)
    return asked != whole and left_out and bool(last.strip()) and last.strip() in alike


def ends_thought(prompt: str, answer: str) -> bool:
    """Whether ``prompt`` opens a thought that ``answer`` goes on with and ends, so that it follows as it stands."""
    opened = THOUGHT.search(prompt)
    return opened is not None and opened[1].replace("<", "</") in answer
