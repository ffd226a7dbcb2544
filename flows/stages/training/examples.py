"""The rows of a round's stages as the trainer's examples, one after the other."""

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context
from pipeline.config import Composition
from pipeline.config.loss.components import GivenWeights
from pipeline.config.loss.composition import divides_rewards
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RunError
from pipeline.storage.parquet.tables import Row
from pipeline.storage.rows import read_groups, read_preference_rows, read_rows
from pipeline.training.batches.advantages import Moments
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.batches.mismatched import with_mismatched
from pipeline.training.reference import contrastive_weights, dispersions, with_reference
from pipeline.types import Group, Pair, Preference, Response, Unpaired

# Folders of the reference stage for the two contrasting models.
POSITIVE, NEGATIVE = "positive", "negative"
# Columns of the advantages stage.
ESTIMATES = ("advantages", "returns")


def round_examples(context: Context, round_: int) -> Iterator[Example]:
    """The round's examples, without anything from the reference model except its calibration responses.

    If a loss reads calibration responses, all of them are in memory at four bytes a token. Of the examples, only
    those that exchange responses (``with_mismatched``) are in memory.
    """
    loss = context.config.loss
    folder = context.run.stage(round_, "pairs").folder
    preferences = read_preference_rows(folder)
    drawn = _calibration(context, round_) if needs_of(loss).calibration else {}
    examples: Iterator[Example] = (
        replace(example_of(preference, loss), calibration=_drawn(drawn.get(preference.prompt.id)))
        for preference in preferences
    )
    if divides_rewards(loss.inputs):
        examples = _scaled(examples, _deviation(read_preference_rows(folder)))
    return with_mismatched(examples) if needs_of(loss).baseline else examples


def _scaled(examples: Iterable[Example], deviation: float) -> Iterator[Example]:
    """Divide all rewards by ``deviation``."""
    for example in examples:
        scores = [c.reward for c in example.responses]
        scaled = [None if score is None else score / deviation for score in scores]
        responses = tuple(replace(c, reward=score) for c, score in zip(example.responses, scaled, strict=True))
        yield replace(example, responses=responses)


def _deviation(preferences: Iterable[Preference]) -> float:
    """Standard deviation of all scores of a round's responses; 1 if they are all the same."""
    moments = Moments()
    for row in preferences:
        scores = row.scores if isinstance(row, Group) else ()
        known = (row.chosen_score, row.rejected_score) if isinstance(row, Pair) else scores
        moments.add(score for score in known if score is not None)
    return math.sqrt(moments.variance) or 1.0


def examples_with_reference(context: Context, round_: int) -> Iterator[Example]:
    """The round's examples with the values that the reference stage stored.

    Raises:
        RunError: the two do not belong together.
    """
    loss = context.config.loss
    examples = round_examples(context, round_)
    if needs_of(loss).advantages:
        examples = _estimated(examples, read_rows(context.run.stage(round_, "advantages").folder), round_)
    if not needs_of(loss).stored_reference:
        return examples
    folder = context.run.stage(round_, "reference").folder
    examples = joined_with_reference(context, round_, examples)
    if (dispersion := loss.inputs.dispersion) is not None:
        entropies = array("d", (row["entropy"] for row in read_rows(folder / reference_name(0))))
        spread = dispersions(entropies, dispersion.scale)
        examples = (replace(example, dispersion=d) for example, d in zip(examples, spread, strict=True))
    if isinstance(weights := loss.inputs.weights, GivenWeights):
        examples = _weighted(examples, folder, weights)
    return examples


def joined_with_reference(context: Context, round_: int, examples: Iterator[Example]) -> Iterator[Example]:
    """Add the values of each reference that the loss reads to ``examples``, which are those of the reference stage."""
    needs = needs_of(context.config.loss)
    if not needs.stored_reference:
        return examples
    folder = context.run.stage(round_, "reference").folder
    # If only a reference's entropy is read, its log-probabilities are not part of the loss.
    names = [reference_name(number) for number in range(needs.references)]
    return _joined(examples, [read_rows(folder / name) for name in names], round_)


def _joined(examples: Iterable[Example], passes: list[Iterator[Row]], round_: int) -> Iterator[Example]:
    """Join each example with its row from each pass."""
    for example in examples:
        rows = [next(rows_of_pass, None) for rows_of_pass in passes]
        found = [row for row in rows if row is not None and row["id"] == example.id]
        tokens = [len(continuation.ids) for continuation in example.continuations]
        if len(found) < len(passes) or any([*map(len, row["logps"])] != tokens for row in found):
            raise _foreign(round_, "reference")
        yield with_reference(example, [tuple(map(tuple, row["logps"])) for row in found])
    if any(next(rows_of_pass, None) is not None for rows_of_pass in passes):
        raise _foreign(round_, "reference")


def _estimated(examples: Iterable[Example], rows: Iterator[Row], round_: int) -> Iterator[Example]:
    """Join each example with the advantages and returns of its responses' tokens."""
    for example in examples:
        row, tokens = next(rows, None), [len(c.ids) for c in example.responses]
        if row is None or row["id"] != example.id or any([*map(len, row[name])] != tokens for name in ESTIMATES):
            raise _foreign(round_, "advantages")
        found = zip(example.responses, row["advantages"], row["returns"], strict=True)
        responses = tuple(replace(c, advantages=tuple(a), returns=tuple(r)) for c, a, r in found)
        yield replace(example, responses=responses)
    if next(rows, None) is not None:
        raise _foreign(round_, "advantages")


def _foreign(round_: int, stage: str) -> RunError:
    told = f"round {round_}: the {stage} stage and the pairs do not belong together"
    return RunError(f"{told}; continue with --from {round_}:{stage} to make it again")


def example_of(preference: Preference, loss: Composition) -> Example:
    """The tokens of a row, with what its data say of them."""
    match preference:
        case Pair():
            return _of_pair(preference, loss)
        case Group():
            given = zip(preference.responses, preference.scores, strict=True)
            responses = tuple(Continuation(response.token_ids, reward=score) for response, score in given)
            return Example(preference.id, preference.prompt_ids, "group", responses)
        case Unpaired():
            ids = preference.response.token_ids
            return Example.unpaired(preference.id, preference.prompt_ids, ids, preference.desirable)


def _of_pair(pair: Pair, loss: Composition) -> Example:
    if needs_of(loss).only_chosen:
        return Example(pair.id, pair.prompt_ids, "text", (Continuation(pair.chosen.token_ids, rows=pair.chosen.rows),))
    # If win probabilities are read, they hold the label's value, and one-sided terms treat labels as certain.
    as_wins = "win_probability" in needs_of(loss)
    return Example(
        pair.id,
        pair.prompt_ids,
        "pair",
        (
            _side(pair.chosen, pair.chosen_prior, pair.chosen_score, pair.win_probability),
            _side(pair.rejected, pair.rejected_prior, pair.rejected_score, pair.win_probability_rejected),
        ),
        soft_label=1.0 if as_wins else pair.soft_label,
    )


def _side(response: Response, prior: float | None, reward: float | None, wins: float | None) -> Continuation:
    return Continuation(response.token_ids, prior=prior, reward=reward, win_probability=wins, rows=response.rows)


def _calibration(context: Context, round_: int) -> "dict[str, array[int]]":
    """Token ids of the reference policy's response to each prompt, by prompt id."""
    groups = read_groups(context.run.stage(round_, "calibration").folder)
    return {group.prompt.id: array("i", group.responses[0].token_ids) for group in groups}


def _drawn(ids: "array[int] | None") -> Continuation | None:
    return None if ids is None else Continuation(tuple(ids))


def _weighted(examples: Iterable[Example], folder: Path, settings: GivenWeights) -> Iterator[Example]:
    """Add to each example its token weights from the two contrasting models."""
    passes = (read_rows(folder / name) for name in (POSITIVE, NEGATIVE))
    for example, good, bad in zip(examples, *passes, strict=True):
        weighted = tuple(
            replace(
                response,
                weights=contrastive_weights(good["logps"][side], bad["logps"][side], settings, chosen=side == 0),
            )
            for side, response in enumerate(example.responses)
        )
        yield replace(example, responses=weighted)
