"""Examples to plan with: of given lengths, with something in every place that the loss reads."""

import math
from collections.abc import Sequence

from pipeline.config.loss.components import GivenPrior, GivenWeights
from pipeline.losses import Loss
from pipeline.training.batches.examples import Continuation, Example, Kind, reads_mismatched

Ids = tuple[int, ...]


def stand_in(id: str, kind: Kind, prompt: Ids, responses: Sequence[Ids], loss: Loss, vocabulary: int) -> Example:
    """An example that ``loss`` can be computed for.

    Scores and reference log-probabilities are those of models that know nothing. What the loss reads beside the
    responses, a calibration or a mismatched one, is as long as the first.
    """
    nats = -math.log(vocabulary)

    def continuation(ids: Ids, rank: int = 0) -> Continuation:
        return Continuation(
            ids,
            references=((nats,) * len(ids),) * loss.references,
            weights=(1.0,) * len(ids) if isinstance(loss.composition.weights, GivenWeights) else None,
            prior=nats * len(ids) if isinstance(loss.composition.prior, GivenPrior) else None,
            reward=-float(rank),
            win_probability=0.5,
        )

    return Example(
        id,
        prompt,
        kind,
        tuple(continuation(ids, rank) for rank, ids in enumerate(responses)),
        desirable=int(id) % 2 == 0 if kind == "unpaired" else None,
        dispersion=1.0,
        calibration=continuation(responses[0][::-1]) if "calibration" in loss.needs else None,
        mismatched=continuation(responses[0][::-1]) if reads_mismatched(loss, kind) else None,
    )


def of_length(start: int, length: int, vocabulary: int) -> Ids:
    """``length`` tokens, others for another ``start``."""
    return tuple((start + 7 * i) % vocabulary for i in range(length))
