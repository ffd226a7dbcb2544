"""Rows from earlier rounds and from the data set that a round also trains on, in files next to its own."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import parent
from flows.stages.context import Context, policy_chat
from flows.stages.data import text_preferences
from pipeline.config import Replay
from pipeline.config.pairing import replayed_ages
from pipeline.storage.rows import read_preference_file, write_preferences
from pipeline.training.pairs import ages_within_drift, draw, shares
from pipeline.training.pairs.from_data import from_texts
from pipeline.types import Group, Pair, Preference, Response, derive_seed

OWN = "rows.parquet"


# Rows of each earlier round whose drift is measured.
MEASURED = 64


def replay(context: Context, round_: int, own: int, folder: Path) -> tuple[int, dict[str, JsonValue]]:
    """Write ``replayed.parquet`` and ``anchor.parquet`` to add to ``own`` rows; return their row count and metrics."""
    settings = context.config.replay
    assert settings is not None, "called only if replay is configured"
    replayed, anchored = shares(own, settings)
    metrics: dict[str, JsonValue] = {}
    added = 0
    if settings.share:
        ages = replayed_ages(settings, round_)
        if settings.max_drift is not None:
            drifts = {age: _drift(context, round_, age) for age in ages}
            ages = ages_within_drift(drifts, settings.max_drift)
            metrics["drift"] = {str(age): drift for age, drift in drifts.items()}
        earlier, by_age = _drawn(context, round_, ages, replayed, settings)
        if sum(by_age.values()):
            added += write_preferences(folder / "replayed.parquet", earlier)
        metrics["replayed"] = {str(age): count for age, count in by_age.items()}
    if settings.anchor:
        anchors = _anchors(context, round_, anchored)
        metrics["anchor"] = len(anchors)
        if anchors:
            added += write_preferences(folder / "anchor.parquet", anchors)
    return added, metrics


def _drawn(
    context: Context, round_: int, ages: Sequence[int], count: int, settings: Replay
) -> tuple[Iterator[Preference], dict[int, int]]:
    sizes = {age: _pool_size(context, round_ - age) for age in ages}
    places = draw({age: range(size) for age, size in sizes.items()}, count, settings.decay, context.config.seed, round_)
    found = (row for age in ages for row in _rows(context, round_ - age, places.get(age, [])))
    return found, {age: len(chosen) for age, chosen in places.items()}


def _pool_size(context: Context, round_: int) -> int:
    own = context.run.stage(round_, "pairs").require().metrics["own"]
    assert isinstance(own, int), "the pairs stage counts its own rows"
    return own


def _rows(context: Context, round_: int, places: Sequence[int]) -> Iterator[Preference]:
    """The rows at ``places`` that round ``round_`` made itself, in the file's order."""
    wanted = set(places)
    file = context.run.stage(round_, "pairs").folder / OWN
    return (row for index, row in enumerate(read_preference_file(file)) if index in wanted)


def _drift(context: Context, round_: int, age: int) -> float:
    """How far log-probabilities of an earlier round's responses have moved since sampling, nats per token.

    The mean over responses of |log π(y) − log π_then(y)| / tokens, where π is the policy that this round starts from,
    on up to ``MEASURED`` random rows. Absolute, since those of chosen and rejected responses move apart.
    """
    from flows.stages.training.frozen import FrozenPolicy

    config = context.config
    size = _pool_size(context, round_ - age)
    lots = random.Random(derive_seed("drift", config.seed, round_, age))  # noqa: S311 - random draws, not secrets
    rows = [*_rows(context, round_ - age, lots.sample(range(size), min(size, MEASURED)))]
    # Another model's responses have no log-probabilities.
    drawn = [(row.prompt_ids, response) for row in rows for response in _responses(row) if response.logprobs]
    sequences = [(prompt, response.token_ids) for prompt, response in drawn]
    with FrozenPolicy(context, context.policy_path(parent(context.run, config, round_))) as policy:
        now = policy.logps(sequences)
    moved = [
        abs(sum(logps) - sum(response.logprobs)) / len(response.token_ids)
        for (_, response), logps in zip(drawn, now, strict=True)
    ]
    return sum(moved) / len(moved)


def _responses(row: Preference) -> tuple[Response, ...]:
    match row:
        case Pair():
            return (row.chosen, row.rejected)
        case Group():
            return row.responses
        case _:
            return (row.response,)


def _anchors(context: Context, round_: int, count: int) -> list[Preference]:
    """``count`` random rows of the data set, or as many as there are; no repeats within a round."""
    order = list(range(sum(1 for _ in text_preferences(context)))) if count else []
    random.Random(derive_seed("anchor", context.config.seed, round_)).shuffle(order)  # noqa: S311 - not secrets
    chat = policy_chat(context.config, context.policy_path(0))
    found: list[Preference] = []
    start = 0
    while len(found) < count and start < len(order):
        places = order[start : start + count - len(found)]
        wanted = set(places)
        texts = {place: text for place, text in enumerate(text_preferences(context)) if place in wanted}
        found += from_texts(context.config, chat, [texts[place] for place in places], round_, Counter())
        start += len(places)
    return found[:count]
