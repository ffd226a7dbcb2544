"""Held-out pairs of the data set: how a round's policy ranks them, against the start's and simple baselines."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context
from flows.stages.data import held_out_pairs
from flows.stages.training.frozen import FrozenPolicy
from pipeline.config import Composition
from pipeline.evaluation.breakdown import PartNames
from pipeline.evaluation.held_out import (
    BASELINE_NAMES,
    PairScores,
    RankedPair,
    pair_margins,
    pair_measures,
    pair_scores,
)
from pipeline.evaluation.intervals import Interval
from pipeline.models.chat import Chat
from pipeline.storage.atomic import write_json
from pipeline.training.batches.examples import Continuation, Example, Logps
from pipeline.training.pairs.from_data import tokenise_pairs
from pipeline.types import Pair, Response

HELD_OUT_MARGINS = "held_out_margins.json"
HELD_OUT_PROMPTS = "held_out_prompts.json"
_Pairs = Sequence[tuple[Logps, ...]]


def held_out_examples(context: Context, chat: Chat) -> list[Example]:
    """Pairs of the data set whose prompts no round trains on, as tokens."""
    return [
        Example(pair.id, pair.prompt_ids, "pair", (_side(pair.chosen), _side(pair.rejected)))
        for pair in _tokenised(context, chat)
    ]


def _side(response: Response) -> Continuation:
    return Continuation(response.token_ids, rows=response.rows)


def write_held_out_prompts(context: Context, chat: Chat, folder: Path) -> None:
    """Write the id of each held-out pair's prompt, for readers of the margins."""
    write_json(folder / HELD_OUT_PROMPTS, {pair.id: pair.prompt.id for pair in _tokenised(context, chat)})


def _tokenised(context: Context, chat: Chat) -> Iterator[Pair]:
    return tokenise_pairs(held_out_pairs(context), chat, context.config.chat, dropped=Counter())


def parts_of_pairs(context: Context, chat: Chat, categories: Mapping[str, str]) -> PartNames:
    """The parts of held-out pairs, by their ids; ``categories``: by their prompts' ids."""
    return PartNames.of({pair.id: pair.prompt for pair in _tokenised(context, chat)}, categories)


def held_out_metrics(
    context: Context, round_: int, pairs: Sequence[Example], folder: Path, parts: PartNames
) -> dict[str, JsonValue]:
    """Write the margin of each pair; return the measures of ``ranked_metrics``."""
    loss = context.config.loss
    start = _pair_logps(context, 0, pairs)
    own = start if round_ == 0 else _pair_logps(context, round_, pairs)
    base = _scores(start, loss)
    ours, theirs = (pair_margins(_scores(logps, loss), base, loss) for logps in (own, start))
    write_json(folder / HELD_OUT_MARGINS, {pair.id: margin for pair, margin in zip(pairs, ours, strict=True)})
    ranked = [
        (pair.id, RankedPair(pair.prompt_ids, mine, before, len(logps[0]), len(logps[1]), _gap(logps)))
        for pair, mine, before, logps in zip(pairs, ours, theirs, start, strict=True)
    ]
    return ranked_metrics(context, ranked, parts)


def ranked_metrics(
    context: Context,
    ranked: Sequence[tuple[str, RankedPair]],
    parts: PartNames,
    baselines: Sequence[str] = tuple(BASELINE_NAMES),
) -> dict[str, JsonValue]:
    """Return ``pair_measures`` as ``held_out_NAME`` with intervals; those of parts in ``held_out_by_source`` and so on.

    ``ranked``: each with the pair's id.
    """
    settings = context.config.evaluation

    def measured(pairs: Sequence[RankedPair]) -> dict[str, JsonValue]:
        return as_metrics(pair_measures(pairs, settings.bootstrap, settings.seed, baselines), len(pairs))

    apart = parts.measured(ranked, measured)
    return measured([pair for _, pair in ranked]) | {f"held_out_{kind}": of for kind, of in apart.items()}


def as_metrics(measures: Mapping[str, Interval], pairs: int) -> dict[str, JsonValue]:
    """Return ``measures`` as metrics.json has them, and the number of pairs."""
    found: dict[str, JsonValue] = {}
    for name, interval in measures.items():
        found[f"held_out_{name}"] = interval.mean
        found[f"held_out_{name}_ci"] = [interval.low, interval.high]
    return found | {"held_out_pairs": pairs}


def _scores(pairs: _Pairs, loss: Composition) -> list[PairScores]:
    return [pair_scores((sum(pair[0]), sum(pair[1])), (len(pair[0]), len(pair[1])), loss) for pair in pairs]


def _gap(pair: tuple[Logps, ...]) -> float:
    chosen, rejected = map(sum, pair)
    return chosen - rejected


def _pair_logps(context: Context, number: int, pairs: Sequence[Example]) -> list[tuple[Logps, ...]]:
    def report(done: int) -> None:
        context.report(done, 2 * len(pairs), f"held-out pairs under the policy of round {number}")

    with FrozenPolicy(context, context.policy_path(number)) as policy:
        return policy.pair_logps(pairs, report)
