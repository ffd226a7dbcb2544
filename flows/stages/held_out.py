"""Held-out pairs of the data set: how a round's policy ranks them, against the start's and simple baselines."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context
from flows.stages.data import held_out_pairs
from pipeline.config import Composition
from pipeline.config.loss.needs import needs_of
from pipeline.evaluation.held_out import RankedPair, pair_measures
from pipeline.models.chat import Chat
from pipeline.models.policy import load_for_scoring
from pipeline.pairs.from_data import tokenise_pairs
from pipeline.storage.atomic import write_json
from pipeline.training.batches.examples import Example, Logps
from pipeline.training.reference import reference_logps
from pipeline.training.watch.held_out import length_power

HELD_OUT_MARGINS = "held_out_margins.json"
_Pairs = Sequence[tuple[Logps, ...]]


def held_out_examples(context: Context, chat: Chat) -> list[Example]:
    """Pairs of the data set whose prompts no round trains on, as tokens."""
    pairs = tokenise_pairs(held_out_pairs(context), chat, context.config.chat, dropped=Counter())
    return [Example.pair(pair.id, pair.prompt_ids, pair.chosen.token_ids, pair.rejected.token_ids) for pair in pairs]


def held_out_metrics(context: Context, round_: int, pairs: Sequence[Example], folder: Path) -> dict[str, JsonValue]:
    """Write the margin of each pair; return the measures of ``pair_measures`` as ``held_out_NAME`` with intervals."""
    settings, loss = context.config.evaluation, context.config.loss
    start = _pair_logps(context, 0, pairs)
    own = start if round_ == 0 else _pair_logps(context, round_, pairs)
    ours, theirs = (_margins(logps, start, loss) for logps in (own, start))
    write_json(folder / HELD_OUT_MARGINS, {pair.id: margin for pair, margin in zip(pairs, ours, strict=True)})
    ranked = [
        RankedPair(pair.prompt_ids, mine, before, len(logps[0]), len(logps[1]), _gap(logps))
        for pair, mine, before, logps in zip(pairs, ours, theirs, start, strict=True)
    ]
    found: dict[str, JsonValue] = {}
    for name, interval in pair_measures(ranked, settings.bootstrap, settings.seed).items():
        found[f"held_out_{name}"] = interval.mean
        found[f"held_out_{name}_ci"] = [interval.low, interval.high]
    return found | {"held_out_pairs": len(pairs)}


def _margins(own: _Pairs, start: _Pairs, loss: Composition) -> list[float]:
    """For each held-out pair, β times the difference of the loss's scores, before token weights, shape and margin.

    If the loss uses a reference, this is the implicit reward log π − log π_start (DPO, arXiv:2305.18290, eq. 5), so
    that rounds can be compared; without one it is log π alone. Tokens are summed or averaged as in the loss.
    """
    scores = [_scores(logps, loss) for logps in own]
    if needs_of(loss).references > 0:
        before = [_scores(logps, loss) for logps in start]
        scores = [(ours[0] - old[0], ours[1] - old[1]) for ours, old in zip(scores, before, strict=True)]
    return [loss.beta * (chosen - rejected) for chosen, rejected in scores]


def _scores(pair: tuple[Logps, ...], loss: Composition) -> tuple[float, float]:
    """Scores of chosen and rejected."""
    power = length_power(loss)
    chosen, rejected = (sum(logps) / len(logps) ** power for logps in pair)
    return chosen, rejected


def _gap(pair: tuple[Logps, ...]) -> float:
    chosen, rejected = map(sum, pair)
    return chosen - rejected


def _pair_logps(context: Context, number: int, pairs: Sequence[Example]) -> list[tuple[Logps, ...]]:
    def report(done: int) -> None:
        context.report(done, 2 * len(pairs), f"held-out pairs under the policy of round {number}")

    model = load_for_scoring(str(context.policy_path(number)), trust_remote_code=context.config.trusts_policy)
    training = context.config.training
    return reference_logps(model, pairs, training.micro_batch_size, training.dtype, report)
