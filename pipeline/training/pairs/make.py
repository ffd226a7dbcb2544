"""Make a round's training rows from scored groups: pairs, comparable groups, or responses marked good or bad.

Ties, equal responses and missing labels never become pairs; dropped rows are counted by cause. Rows are made one at a
time, and counts are complete after the last one.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator

from pipeline.config import Pairing, RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.data.spool.distinct import Firsts
from pipeline.training.pairs.filters import PAIR_CAUSES, RESPONSE_CAUSES, Scored, distinct_responses, usable
from pipeline.training.pairs.rules import choose_pairs
from pipeline.training.pairs.wins import Opponent, group_wins
from pipeline.types import Group, Pair, Preference, Unpaired, derive_seed


def make_pairs(
    groups: Iterable[Group],
    settings: Pairing,
    round_: int,
    seed: int,
    win_against: Opponent = "average",
    *,
    dropped: Counter[str],
) -> Iterator[Pair]:
    """Make pairs from scored ``groups``; ``dropped`` counts what was dropped, by cause.

    Random draws depend only on ``seed``, ``round_`` and the prompt. Win probabilities come from
    ``wins.group_wins``.

    Units: the causes of ``filters.usable`` count responses; ``too_few`` (fewer than two responses left) counts groups;
    the causes of ``filters.why_no_pair`` and ``capped`` count pairs, see ``rules.choose_pairs``.
    """
    dropped.update(dict.fromkeys((*RESPONSE_CAUSES, "too_few", *PAIR_CAUSES, "capped"), 0))
    for group in groups:
        candidates = usable(group, settings, dropped)
        if len(candidates) < 2:
            dropped["too_few"] += 1
            continue
        lots = random.Random(derive_seed("pairs", seed, round_, group.prompt.id))  # noqa: S311 - draws, not secrets
        for better, worse in choose_pairs(candidates, settings, lots, dropped):
            yield _pair(group, better, worse, win_against, round_)


def make_groups(groups: Iterable[Group], settings: Pairing, *, dropped: Counter[str]) -> Iterator[Group]:
    """Keep the usable responses of scored ``groups``, for losses over K responses; ``dropped`` counts the others.

    Counts as in ``make_pairs``, except for ties: responses of equal score stay, since a loss over K responses learns
    from those too, and ``near_duplicate`` counts responses. The pairing rule, margins and pair lengths are not read.
    """
    dropped.update(dict.fromkeys((*RESPONSE_CAUSES, "near_duplicate", "too_few"), 0))
    for group in groups:
        left = distinct_responses(usable(group, settings, dropped), settings, dropped)
        if len(left) < 2:
            dropped["too_few"] += 1
            continue
        yield group.only([group.responses.index(response) for response, _ in left])


def make_marked(groups: Iterable[Group], settings: Pairing, *, dropped: Counter[str]) -> Iterator[Unpaired]:
    """Mark usable responses good if their score is above the threshold, bad if below; ``dropped`` counts the others.

    The threshold is ``settings.threshold``, or the mean score of the group's usable responses. ``tie`` counts
    responses within ``min_margin`` of it; ``near_duplicate`` counts responses, as in ``make_groups``.
    """
    dropped.update(dict.fromkeys((*RESPONSE_CAUSES, "near_duplicate", "tie"), 0))
    for group in groups:
        left = distinct_responses(usable(group, settings, dropped), settings, dropped)
        if not left:
            continue
        mean = sum(score for _, score in left) / len(left)
        middle = mean if settings.threshold is None else settings.threshold
        for response, score in left:
            if abs(score - middle) <= settings.min_margin:
                dropped["tie"] += 1
            else:
                yield Unpaired(group.prompt, group.prompt_ids, response, desirable=score > middle)


def drop_repeated(
    preferences: Iterable[Preference], earlier: Iterable[Preference], *, dropped: Counter[str]
) -> Iterator[Preference]:
    """Drop rows that are among ``earlier`` ones or repeat a row before them; count them as ``repeated``."""
    dropped["repeated"] += 0
    seen = Firsts()
    for row in earlier:
        seen.add(row.id, "")
    for row in preferences:
        if seen.add(row.id, "") is None:
            yield row
        else:
            dropped["repeated"] += 1


def _pair(group: Group, better: Scored, worse: Scored, win_against: Opponent, round_: int) -> Pair:
    wins, wins_rejected = group_wins(group, better[0], worse[0], win_against)
    return Pair(
        group.prompt,
        group.prompt_ids,
        better[0],
        worse[0],
        better[1],
        worse[1],
        win_probability=wins,
        win_probability_rejected=wins_rejected,
        round=round_,
    )


def from_groups(config: RunConfig, round_: int, groups: Iterable[Group], dropped: Counter[str]) -> Iterator[Preference]:
    """Make rows from scored ``groups`` in the form that the config's loss and pairing rule need."""
    if needs_of(config.loss).groups:
        return make_groups(groups, config.pairing, dropped=dropped)
    if config.pairing.rule == "marked":
        return make_marked(groups, config.pairing, dropped=dropped)
    return make_pairs(groups, config.pairing, round_, config.seed, needs_of(config.loss).opponent, dropped=dropped)
