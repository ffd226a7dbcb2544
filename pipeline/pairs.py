"""Preference pairs from scored groups, and from a data set's texts.

Ties, equal responses and missing labels never become pairs; whatever is dropped is counted by cause.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, Protocol

from pipeline import config
from pipeline.config import Pairing
from pipeline.types import Group, Message, Pair, Response, TextPair, derive_seed

Cause = Literal["cut", "empty", "missing_label", "identical", "too_few", "tie", "long_prompt"]
CAUSES: tuple[Cause, ...] = ("cut", "empty", "missing_label", "identical", "too_few", "tie", "long_prompt")
Scored = tuple[Response, float]


class Tokeniser(Protocol):
    """What tokenising pairs needs of ``chat.Chat``."""

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids up to where the assistant's turn begins."""
        ...

    def response_ids(self, messages: Sequence[Message], text: str, finished: bool = True) -> tuple[int, ...]:
        """Ids of the assistant's turn."""
        ...


def make_pairs(groups: Iterable[Group], settings: Pairing, round_: int, seed: int) -> tuple[list[Pair], dict[str, int]]:
    """Pairs from scored ``groups``, and what was dropped by cause.

    ``best_worst`` takes the best against the worst response of a group (equally good ones by lot),
    ``random`` two responses by lot, ``all`` every two. A difference of scores at or below
    ``settings.min_margin`` is a tie. Lots depend on ``seed``, ``round_`` and the prompt alone.

    Counts: ``cut`` (ended by the length limit, with ``drop_cut``), ``empty`` (no text),
    ``missing_label`` and ``identical`` (same tokens as another of the group, or same text and end) are responses;
    ``too_few`` (fewer than two responses left) are groups; ``tie`` are pairs, one a group save for ``all``.
    """
    dropped: Counter[str] = Counter()
    pairs: list[Pair] = []
    for group in groups:
        usable = _usable(group, settings, dropped)
        if len(usable) < 2:
            dropped["too_few"] += 1
            continue
        lots = random.Random(derive_seed("pairs", seed, round_, group.prompt.id))  # noqa: S311 - lots, not secrets
        for one, other in _candidates(usable, settings, lots):
            better, worse = (one, other) if one[1] >= other[1] else (other, one)
            if better[1] - worse[1] <= settings.min_margin:
                dropped["tie"] += 1
                continue
            pairs.append(
                Pair(
                    group.prompt,
                    group.prompt_ids,
                    better[0],
                    worse[0],
                    better[1],
                    worse[1],
                    soft_label=1.0,
                    round=round_,
                )
            )
    return pairs, {cause: dropped[cause] for cause in CAUSES if cause != "long_prompt"}


def _usable(group: Group, settings: Pairing, dropped: Counter[str]) -> list[Scored]:
    usable: list[Scored] = []
    seen: set[tuple[int, ...] | tuple[str, str]] = set()
    for response, score in zip(group.responses, group.scores, strict=True):
        if settings.drop_cut and response.finish_reason == "length":
            dropped["cut"] += 1
        elif not response.text.strip():
            dropped["empty"] += 1
        elif score is None:
            dropped["missing_label"] += 1
        elif not seen.isdisjoint(same := (response.token_ids, (response.text, response.finish_reason))):
            # One text can be drawn as several token sequences: nobody could prefer one of them.
            dropped["identical"] += 1
        else:
            seen.update(same)
            usable.append((response, score))
    return usable


def _candidates(usable: list[Scored], settings: Pairing, lots: random.Random) -> Iterator[tuple[Scored, Scored]]:
    if settings.rule == "all":
        yield from combinations(usable, 2)
    elif settings.rule == "random":
        one, other = lots.sample(usable, 2)
        yield one, other
    else:
        shuffled = lots.sample(usable, len(usable))
        yield max(shuffled, key=lambda item: item[1]), min(shuffled, key=lambda item: item[1])


def tokenise_pairs(
    texts: Iterable[TextPair], chat: Tokeniser, limits: config.Chat
) -> tuple[list[Pair], dict[str, int]]:
    """A data set's pairs as tokens, in order, and what was dropped or shortened by cause.

    Both responses get an end token, since their authors stopped there, unless they are longer than
    ``limits.max_response_tokens``: those are cut at the right, carry none and are counted in ``cut``
    (responses, kept). Dropped pairs: ``long_prompt`` (over ``limits.max_prompt_tokens``), ``empty`` (a response without
    text), ``identical`` (equal tokens, before or after the cut).
    """
    dropped: Counter[str] = Counter()
    pairs: list[Pair] = []
    for text in texts:
        messages = text.prompt.messages
        prompt_ids = chat.prompt_ids(messages)
        if len(prompt_ids) > limits.max_prompt_tokens:
            dropped["long_prompt"] += 1
            continue
        if not text.chosen.strip() or not text.rejected.strip():
            dropped["empty"] += 1
            continue
        chosen, rejected = (_given(side, messages, chat, limits) for side in (text.chosen, text.rejected))
        if chosen.token_ids == rejected.token_ids:
            dropped["identical"] += 1
            continue
        dropped["cut"] += sum(side.finish_reason == "length" for side in (chosen, rejected))
        scores = (text.chosen_score, text.rejected_score)
        pairs.append(Pair(text.prompt, prompt_ids, chosen, rejected, *scores, soft_label=text.soft_label))
    return pairs, {cause: dropped[cause] for cause in ("long_prompt", "empty", "identical", "cut")}


def _given(text: str, messages: Sequence[Message], chat: Tokeniser, limits: config.Chat) -> Response:
    # One token of the limit is the end token's, so the count without it tells a full response from a cut one.
    content = chat.response_ids(messages, text, finished=False)
    whole = chat.response_ids(messages, text)
    fits = len(whole) > len(content)
    return Response(text, whole[: limits.max_response_tokens], (), "stop" if fits else "length")
