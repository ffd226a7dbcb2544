"""Pairs and reference log-probs of the run folder as the trainer's examples."""

from flows.stages import Context
from pipeline.reference import with_reference
from pipeline.rows import read_pairs, read_rows
from pipeline.train import Example
from pipeline.types import RunError


def pair_examples(context: Context, round_: int) -> list[Example]:
    """The round's pairs, without reference log-probs."""
    return [
        Example(
            id=pair.id,
            prompt_ids=pair.prompt_ids,
            chosen_ids=pair.chosen.token_ids,
            rejected_ids=pair.rejected.token_ids,
            reference_chosen=None,
            reference_rejected=None,
            soft_label=pair.soft_label,
        )
        for pair in read_pairs(context.run.stage(round_, "pairs").folder)
    ]


def examples_with_reference(context: Context, round_: int) -> list[Example]:
    """The round's pairs with what the reference stage stored. Raises ``RunError`` if the two do not match."""
    examples = pair_examples(context, round_)
    rows = list(read_rows(context.run.stage(round_, "reference").folder))
    if [row["pair_id"] for row in rows] != [example.id for example in examples]:
        raise RunError(f"round {round_}: reference log-probs and pairs do not belong together")
    return with_reference(examples, [(tuple(row["chosen"]), tuple(row["rejected"])) for row in rows])
