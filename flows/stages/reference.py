"""reference: what models that are not trained say of the round's responses, computed once.

One model in memory at a time: the reference policy, or several, then the two contrasting models if the loss weighs
tokens by them.
"""

from pathlib import Path

from flows.keys import reference_stages
from flows.stages import Context, Outcome
from flows.stages.examples import round_examples
from flows.supply import reads_contrast
from pipeline.config.components import GivenWeights
from pipeline.config.needs import references_of
from pipeline.examples import Example
from pipeline.policy import load_for_scoring
from pipeline.reference import ReferenceValues, contrastive_weights, reference_values
from pipeline.rows import REFERENCE, Row, write_table


def reference(context: Context, round_: int, folder: Path) -> Outcome:
    """One row an example, in their order; see ``rows.REFERENCE``."""
    loss = context.config.loss
    examples = round_examples(context, round_)
    wants_entropy = loss.dispersion is not None
    models = reference_models(context, round_)[: max(references_of(loss), int(wants_entropy))]
    scores = _Scores(context, examples, len(models) + 2 * reads_contrast(loss))
    passes = [scores.under(model, entropy=wants_entropy and number == 0) for number, model in enumerate(models)]
    rows: list[Row] = [
        {
            "id": example.id,
            "logps": [values[index].logps for values in passes[: references_of(loss)]],
            "entropy": passes[0][index].entropy if wants_entropy else None,
            "weights": None,
        }
        for index, example in enumerate(examples)
    ]
    if isinstance(loss.weights, GivenWeights):
        _add_weights(context, scores, loss.weights, rows)
    write_table(folder / "rows.parquet", REFERENCE, rows)
    return Outcome(len(rows), {"reference": reference_stages(context.run, context.config, round_)[0].title})


def reference_models(context: Context, round_: int) -> list[str]:
    """Model folders (or hub names) in the order in which the loss counts its references, the round's own first."""
    stages = reference_stages(context.run, context.config, round_)
    further = context.config.training.references
    # With an extrapolated prior they are the checkpoint before the start policy, which round 1 alone reads.
    own = [str(context.model_path(stage)) for stage in stages]
    return own if len(own) > 1 else [*own, *further]


class _Scores:
    """Passes over all continuations of the examples under one model after another."""

    def __init__(self, context: Context, examples: list[Example], passes: int) -> None:
        self._context, self.examples = context, examples
        self._size = sum(len(example.continuations) for example in examples)
        self._total, self._done = passes * self._size, 0

    def under(self, model: str, entropy: bool = False) -> list[ReferenceValues]:
        """What the model in the folder ``model`` says of each example; it is gone from memory after."""
        training, done = self._context.config.training, self._done
        self._done += self._size
        return reference_values(
            load_for_scoring(model, trust_remote_code=self._context.config.trusts_policy),
            self.examples,
            training.micro_batch_size,
            training.dtype,
            lambda count: self._context.report(done + count, self._total, ""),
            entropy=entropy,
        )


def _add_weights(context: Context, scores: _Scores, settings: GivenWeights, rows: list[Row]) -> None:
    contrast = context.config.training.contrastive
    assert contrast is not None, "checked before the run"
    good, bad = scores.under(contrast.positive), scores.under(contrast.negative)
    for row, example, plus, minus in zip(rows, scores.examples, good, bad, strict=True):
        row["weights"] = [
            contrastive_weights(plus.logps[side], minus.logps[side], settings, chosen=side == 0)
            for side in range(len(example.responses))
        ]
