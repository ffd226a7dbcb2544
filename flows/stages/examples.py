"""What the stages of a round made, as the trainer's examples."""

from collections.abc import Sequence
from dataclasses import replace

from flows.stages import Context
from flows.supply import reads_contrast, samples_calibration, stores_reference, takes_texts
from pipeline.config import Composition
from pipeline.config.needs import needs_of, reads_baseline
from pipeline.examples import Continuation, Example
from pipeline.reference import dispersions, with_references
from pipeline.rows import Row, read_groups, read_preferences, read_rows
from pipeline.types import Group, Pair, Preference, Response, RunError, Unpaired


def round_examples(context: Context, round_: int) -> list[Example]:
    """What the round trains on, without anything of the reference model but its calibration responses."""
    loss = context.config.loss
    preferences = list(read_preferences(context.run.stage(round_, "pairs").folder))
    examples = [_example(preference, loss) for preference in preferences]
    if samples_calibration(loss):
        examples = _with_calibration(context, round_, preferences, examples)
    if examples[0].kind == "unpaired" and reads_baseline(loss):
        examples = _with_mismatched(examples)
    return examples


def examples_with_reference(context: Context, round_: int) -> list[Example]:
    """The round's examples with what the reference stage stored. Raises ``RunError`` if the two do not match."""
    loss = context.config.loss
    examples = round_examples(context, round_)
    if not stores_reference(loss):
        return examples
    rows = list(read_rows(context.run.stage(round_, "reference").folder))
    if [row["id"] for row in rows] != [example.id for example in examples]:
        raise RunError(f"round {round_}: the reference stage and the pairs do not belong together")
    if loss.dispersion is not None:
        spread = dispersions([row["entropy"] for row in rows], loss.dispersion.scale)
        examples = [replace(example, dispersion=d) for example, d in zip(examples, spread, strict=True)]
    if reads_contrast(loss):
        examples = [_weighted(example, row) for example, row in zip(examples, rows, strict=True)]
    passes = [[tuple(map(tuple, row["logps"][model])) for row in rows] for model in range(len(rows[0]["logps"]))]
    return with_references(examples, passes)


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
    if takes_texts(loss):
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


def _with_calibration(
    context: Context, round_: int, preferences: Sequence[Preference], examples: Sequence[Example]
) -> list[Example]:
    groups = read_groups(context.run.stage(round_, "calibration").folder)
    drawn = {group.prompt.id: Continuation(group.responses[0].token_ids) for group in groups}
    return [
        replace(example, calibration=drawn.get(preference.prompt.id))
        for preference, example in zip(preferences, examples, strict=True)
    ]


def _with_mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each with the next example's response to another prompt, the last with one of the first.

    KTO (arXiv:2402.01306, section 4.1) estimates KL(π ‖ π_ref) from such responses.
    """
    found = []
    for index, example in enumerate(examples):
        order = [*range(index + 1, len(examples)), *range(index)]
        other = next((i for i in order if examples[i].prompt_ids != example.prompt_ids), index)
        found.append(replace(example, mismatched=Continuation(examples[other].responses[0].ids)))
    return found


def _weighted(example: Example, row: Row) -> Example:
    sides = zip(example.responses, row["weights"], strict=True)
    weighted = tuple(replace(response, weights=tuple(weights)) for response, weights in sides)
    return replace(example, responses=weighted)
