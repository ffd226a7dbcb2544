"""Held-out pairs of images: how a round's policy ranks them, by the difference of its bounds from the start's."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context
from flows.stages.data import held_out_pairs
from flows.stages.images.frozen import frozen_scores
from flows.stages.images.imported import imported_pairs
from flows.stages.measures.held_out import HELD_OUT_MARGINS, HELD_OUT_PROMPTS, ranked_metrics
from pipeline.config import Composition
from pipeline.data.pictures.image_rows import IMAGES
from pipeline.evaluation.breakdown import PartNames
from pipeline.evaluation.held_out import PairScores, RankedPair, pair_margins, pair_scores
from pipeline.storage.atomic import write_json
from pipeline.training.batches.examples import Continuation, Example, Logps
from pipeline.types import Pair

# Draws of (level, noise) for each pair, shared by both sides, the same in all rounds.
_DRAWS = 8


def image_held_out(context: Context, round_: int, folder: Path, categories: Mapping[str, str]) -> dict[str, JsonValue]:
    """Write the margin of each held-out pair; return what text has, without baselines by length; nothing without."""
    rows = imported_pairs(context, held_out_pairs(context), round_, Counter())
    pairs = [row for row in rows if isinstance(row, Pair)]
    if not pairs:
        return {}
    loss = context.config.loss
    start = _scored(context, 0, pairs, loss)
    own = start if round_ == 0 else _scored(context, round_, pairs, loss)
    ours, before = (pair_margins(scores, start, loss) for scores in (own, start))
    write_json(folder / HELD_OUT_MARGINS, {pair.id: margin for pair, margin in zip(pairs, ours, strict=True)})
    write_json(folder / HELD_OUT_PROMPTS, {pair.id: pair.prompt.id for pair in pairs})
    ranked = [
        (pair.id, RankedPair(pair.prompt.id, mine, theirs, 0, 0, base[0] - base[1]))
        for pair, mine, theirs, base in zip(pairs, ours, before, start, strict=True)
    ]
    parts = PartNames.of({pair.id: pair.prompt for pair in pairs}, categories)
    return ranked_metrics(context, ranked, parts, baselines=("start_logp",))


def _scored(context: Context, number: int, pairs: list[Pair], loss: Composition) -> list[PairScores]:
    """The scores of both sides of each pair, as training computes them: in its unit, from its part of the schedule."""
    examples = [
        Example(
            pair.id,
            pair.prompt_ids,
            "pair",
            (Continuation(pair.chosen.token_ids), Continuation(pair.rejected.token_ids)),
        )
        for pair in pairs
    ]
    score = context.config.training.score.for_held_out(_DRAWS)
    found, _ = frozen_scores(context, number, context.run.stage(0, "data").folder / IMAGES, examples, score)
    # All images have the same length.
    return [pair_scores((_whole(chosen), _whole(rejected)), (1, 1), loss) for chosen, rejected in found]


def _whole(draws: Logps) -> float:
    return sum(draws)
