"""What the stages of a round made, as the trainer's examples, one after the other."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context
from pipeline.config import Composition
from pipeline.config.loss.components import GivenWeights
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RunError
from pipeline.storage.rows import read_groups, read_preference_rows, read_rows
from pipeline.storage.tables import Row
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.reference import contrastive_weights, dispersions, with_reference
from pipeline.types import Group, Pair, Preference, Response, Unpaired

# Folders of the reference stage that the two contrasting models fill.
POSITIVE, NEGATIVE = "positive", "negative"


def round_examples(context: Context, round_: int) -> Iterator[Example]:
    """What the round trains on, without anything of the reference model but its calibration responses.

    Those are all in memory where a loss reads them, four bytes a token; of the examples there are as many as follow
    each other with one prompt.
    """
    loss = context.config.loss
    preferences = read_preference_rows(context.run.stage(round_, "pairs").folder)
    drawn = _calibration(context, round_) if needs_of(loss).calibration else {}
    examples = (
        replace(_example(preference, loss), calibration=_drawn(drawn.get(preference.prompt.id)))
        for preference in preferences
    )
    return _with_mismatched(examples) if needs_of(loss).baseline else examples


def examples_with_reference(context: Context, round_: int) -> Iterator[Example]:
    """The round's examples with what the reference stage stored.

    Raises:
        RunError: the two do not belong together.
    """
    loss = context.config.loss
    examples = round_examples(context, round_)
    if not needs_of(loss).stored_reference:
        return examples
    folder = context.run.stage(round_, "reference").folder
    # Where only the entropy of a reference is read, its log-probabilities are not the loss's.
    names = [reference_name(number) for number in range(needs_of(loss).references)]
    examples = _joined(examples, [read_rows(folder / name) for name in names], round_)
    if loss.dispersion is not None:
        entropies = array("d", (row["entropy"] for row in read_rows(folder / reference_name(0))))
        spread = dispersions(entropies, loss.dispersion.scale)
        examples = (replace(example, dispersion=d) for example, d in zip(examples, spread, strict=True))
    if isinstance(loss.weights, GivenWeights):
        examples = _weighted(examples, folder, loss.weights)
    return examples


def _joined(examples: Iterable[Example], passes: list[Iterator[Row]], round_: int) -> Iterator[Example]:
    """Each example with its row of each pass."""
    for example in examples:
        rows = [next(rows_of_pass, None) for rows_of_pass in passes]
        found = [row for row in rows if row is not None and row["id"] == example.id]
        if len(found) < len(passes):
            raise _foreign(round_)
        yield with_reference(example, [tuple(map(tuple, row["logps"])) for row in found])
    if any(next(rows_of_pass, None) is not None for rows_of_pass in passes):
        raise _foreign(round_)


def _foreign(round_: int) -> RunError:
    return RunError(f"round {round_}: the reference stage and the pairs do not belong together")


def _example(preference: Preference, loss: Composition) -> Example:
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
        return Example.text(pair.id, pair.prompt_ids, pair.chosen.token_ids)
    # Where win probabilities are read they hold what the label says, and one-sided terms take labels as certain.
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
    return Continuation(response.token_ids, prior=prior, reward=reward, win_probability=wins)


def _calibration(context: Context, round_: int) -> "dict[str, array[int]]":
    """The token ids of the reference policy's answer to each prompt, by the prompt's id."""
    groups = read_groups(context.run.stage(round_, "calibration").folder)
    return {group.prompt.id: array("i", group.responses[0].token_ids) for group in groups}


def _drawn(ids: "array[int] | None") -> Continuation | None:
    return None if ids is None else Continuation(tuple(ids))


def _with_mismatched(examples: Iterable[Example]) -> Iterator[Example]:
    """Single responses, each with the next example's response to another prompt, the last with one of the first.

    KTO (arXiv:2402.01306, section 4.1) estimates KL(π ‖ π_ref) from such responses; of pairs it needs none.
    """
    held: list[Example] = []
    beginnings: list[Example] = []
    for _, run in groupby(examples, key=lambda example: example.prompt_ids):
        same = [*run]
        beginnings = [*beginnings, same[0]][:2]
        yield from _mismatched(held, same[0])
        held = same
    # With one prompt alone there is no other response than its own.
    others = [example for example in beginnings if example.prompt_ids != held[0].prompt_ids]
    for example in held:
        yield from _mismatched([example], [*others, example][0])


def _mismatched(examples: Iterable[Example], other: Example) -> Iterator[Example]:
    ids = other.responses[0].ids
    for example in examples:
        yield replace(example, mismatched=Continuation(ids)) if example.kind == "unpaired" else example


def _weighted(examples: Iterable[Example], folder: Path, settings: GivenWeights) -> Iterator[Example]:
    """Each with what the two contrasting models make its tokens count."""
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
