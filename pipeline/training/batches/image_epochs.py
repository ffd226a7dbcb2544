"""Examples of images, epoch by epoch: their ids are the draws of all epochs, one epoch after the other. Torch-free."""

from dataclasses import replace

from pipeline.training.batches.examples import Example


def of_epoch(example: Example, epoch: int, draws: int | None) -> Example:
    """Return ``example`` with the ``draws`` of ``epoch`` alone, and the reference's scores of these; text is whole.

    Raises ``ValueError`` if it was made for fewer epochs.
    """
    if draws is None:
        return example
    if any(len(c.ids) < (epoch + 1) * draws for c in example.continuations):
        raise ValueError(f"example {example.id}: fewer draws than {draws} in each of {epoch + 1} epochs")
    part = slice(epoch * draws, (epoch + 1) * draws)
    cut = [
        replace(c, ids=c.ids[part], references=tuple(scores[part] for scores in c.references))
        for c in example.continuations
    ]
    return example.with_continuations(cut)
