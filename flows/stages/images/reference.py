"""reference of images: the reference's scores of all draws of a round, stored as those of tokens are."""

from itertools import count, islice
from pathlib import Path

from flows.run_folder.ancestry import reference_stages
from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context, Outcome
from flows.stages.images.examples import image_round_examples, round_index, scores_of
from flows.stages.training.reference import reference_models
from pipeline.config.loss.needs import needs_of
from pipeline.images.image_folder import load_image_policy
from pipeline.storage.parquet.tables import Row
from pipeline.storage.rows import REFERENCE, write_table
from pipeline.storage.seals import Seals
from pipeline.training.reference import reference_logps

# Examples of a shard: the most that a kill can lose.
_SHARD = 1024


def image_reference(context: Context, round_: int, folder: Path) -> Outcome:
    """Write one row per example for each reference model, in the examples' order; see ``rows.REFERENCE``."""
    models = reference_models(context, round_)[: needs_of(context.config.loss).references]
    rows_made = 0
    for number, model in enumerate(models):
        policy = load_image_policy(model, encoders="text")
        policy.network.requires_grad_(False)
        index = round_index(context, round_, policy)
        scores, place = scores_of(context, policy.without_encoders(), index), folder / reference_name(number)
        place.mkdir(exist_ok=True)
        seals, rows_made = Seals(place), 0
        examples = image_round_examples(context, round_, index)
        for shard in count():
            part = [*islice(examples, _SHARD)]
            if not part:
                break
            file = place / f"shard_{shard:05d}.parquet"
            if not seals.hold(file.name):
                found = reference_logps(scores, part, 2 * context.config.training.micro_batch_size)
                rows: list[Row] = [
                    {"id": example.id, "logps": logps, "entropy": None}
                    for example, logps in zip(part, found, strict=True)
                ]
                write_table(file, REFERENCE, rows, seals.of(file.name))
            rows_made += len(part)
            context.report(rows_made, 0, "")
    return Outcome(rows_made, {"reference": reference_stages(context.run, context.config, round_)[0].title})
