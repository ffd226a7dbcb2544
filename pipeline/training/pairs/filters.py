"""Select a group's usable responses and the pairs that they may form; count dropped ones by cause."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from pipeline.config import Pairing
from pipeline.types import Group, Response

Scored = tuple[Response, float]
ResponseCause = Literal["unfinished_thinking", "cut", "empty", "over_long", "missing_label", "disputed", "identical"]
PairCause = Literal["tie", "margin", "length", "near_duplicate"]
RESPONSE_CAUSES: tuple[ResponseCause, ...] = (
    "unfinished_thinking",
    "cut",
    "empty",
    "over_long",
    "missing_label",
    "disputed",
    "identical",
)
PAIR_CAUSES: tuple[PairCause, ...] = ("tie", "margin", "length", "near_duplicate")


def usable(group: Group, settings: Pairing, dropped: Counter[str]) -> list[Scored]:
    """Return ``group``'s responses that may be part of a pair, with their scores; count the others in ``dropped``.

    Causes: ``unfinished_thinking`` (ended inside a thought, with ``drop_unfinished_thinking``), ``cut`` (ended by the
    length limit, with ``drop_cut``), ``empty`` (no text), ``over_long`` (more than ``max_response_tokens``),
    ``missing_label``, ``disputed`` (labellers differ by more than ``max_disagreement``), ``identical`` (same tokens as
    another, or same text and end). Lengths are those of what labellers see.
    """
    found: list[Scored] = []
    seen: set[tuple[int, ...] | tuple[str, str]] = set()
    spreads = group.disagreement or (None,) * len(group.responses)
    for response, score, spread in zip(group.responses, group.scores, spreads, strict=True):
        if settings.drop_unfinished_thinking and response.in_thought:
            dropped["unfinished_thinking"] += 1
        elif settings.drop_cut and response.finish_reason == "length":
            dropped["cut"] += 1
        elif not response.text.strip() and not response.in_thought:
            dropped["empty"] += 1
        elif settings.max_response_tokens is not None and len(response.shown_ids) > settings.max_response_tokens:
            dropped["over_long"] += 1
        elif score is None:
            dropped["missing_label"] += 1
        elif settings.max_disagreement is not None and spread is not None and spread > settings.max_disagreement:
            dropped["disputed"] += 1
        elif not seen.isdisjoint(same := (response.token_ids, (response.text, response.finish_reason))):
            # One text can be drawn as several token sequences: no one can prefer one of them.
            dropped["identical"] += 1
        else:
            seen.update(same)
            found.append((response, score))
    return found


def distinct_responses(scored: Sequence[Scored], settings: Pairing, dropped: Counter[str]) -> list[Scored]:
    """Drop near-duplicates of earlier responses, and count them as ``near_duplicate``."""
    found: list[Scored] = []
    for response, score in scored:
        if any(near_duplicates(response, other, settings) for other, _ in found):
            dropped["near_duplicate"] += 1
        else:
            found.append((response, score))
    return found


def why_no_pair(one: Scored, other: Scored, settings: Pairing) -> PairCause | None:
    """Return why the two may not form a pair: the first of ``PAIR_CAUSES`` that applies. None: they may.

    ``tie``: scores differ by ``min_margin`` or less; ``margin``: by more than ``max_margin``; ``length``: token counts
    differ by more than ``max_length_difference``; ``near_duplicate``: more alike than ``max_similarity``.
    """
    margin = abs(one[1] - other[1])
    if margin <= settings.min_margin:
        return "tie"
    if settings.max_margin is not None and margin > settings.max_margin:
        return "margin"
    if settings.max_length_difference is not None:
        shorter, longer = sorted((len(one[0].shown_ids), len(other[0].shown_ids)))
        if longer - shorter > settings.max_length_difference * longer:
            return "length"
    return "near_duplicate" if near_duplicates(one[0], other[0], settings) else None


def near_duplicates(one: Response, other: Response, settings: Pairing) -> bool:
    """Return whether 1 − Levenshtein distance / length of the longer, in tokens, is above ``max_similarity``."""
    if settings.max_similarity is None:
        return False
    similarity = Levenshtein.normalized_similarity(one.shown_ids, other.shown_ids)
    return similarity > settings.max_similarity
