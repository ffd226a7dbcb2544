"""Pairs of a strong and a weak policy's responses to the same prompts, without labels (delta learning)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.config import Pairing
from pipeline.training.pairs.filters import RESPONSE_CAUSES, usable, why_no_pair
from pipeline.types import Group, Pair, Response


def make_strong_weak(
    own: Iterable[Group], second: Iterable[Group], settings: Pairing, round_: int, *, dropped: Counter[str]
) -> Iterator[Pair]:
    """Pair the k-th usable response of the policy with the k-th of the second one; ``dropped`` counts the others.

    Both have the same prompts in the same order, some of which may be left out. Chosen are the responses of the
    stronger policy, as ``settings.second.role`` says, with certainty.

    Units: the causes of ``filters.usable`` count responses of either policy; ``no_partner`` counts those that the other
    policy has no response for; ``same``, ``length`` and ``near_duplicate`` count pairs.
    """
    assert settings.second is not None, "the config's validator requires it"
    dropped.update(dict.fromkeys((*RESPONSE_CAUSES, "no_partner", "same", "length", "near_duplicate"), 0))
    for ours, theirs in _beside(own, second, dropped):
        sides = [_usable(group, settings, dropped) for group in (ours, theirs)]
        dropped["no_partner"] += abs(len(sides[0]) - len(sides[1]))
        for pair in zip(*sides, strict=False):
            better, worse = pair if settings.second.role == "weak" else pair[::-1]
            cause = why_no_pair((better, 1.0), (worse, 0.0), settings)
            if better.token_ids == worse.token_ids or _said(better) == _said(worse):
                dropped["same"] += 1
            elif cause is not None:
                dropped[cause] += 1
            else:
                wins = {"win_probability": 1.0, "win_probability_rejected": 0.0}
                yield Pair(ours.prompt, ours.prompt_ids, better, worse, **wins, round=round_)


def _said(response: Response) -> tuple[str, str]:
    return response.text, response.finish_reason


def _usable(group: Group, settings: Pairing, dropped: Counter[str]) -> list[Response]:
    unlabelled = replace(group, scores=(0.0,) * len(group.responses))
    return [response for response, _ in usable(unlabelled, settings, dropped)]


def _beside(own: Iterable[Group], second: Iterable[Group], dropped: Counter[str]) -> Iterator[tuple[Group, Group]]:
    """Yield both groups of each prompt that both have, in order."""
    rest, ahead = iter(second), dict[str, Group]()
    for ours in own:
        # Its group is among those seen so far, or next; only where it has none are all others read ahead.
        while ours.prompt.id not in ahead and (theirs := next(rest, None)) is not None:
            ahead[theirs.prompt.id] = theirs
        found = ahead.pop(ours.prompt.id, None)
        if found is None:
            dropped["no_partner"] += len(ours.responses)
        else:
            yield ours, found
    dropped["no_partner"] += sum(len(group.responses) for group in (*ahead.values(), *rest))
