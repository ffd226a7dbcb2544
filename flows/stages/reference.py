"""reference: each pair's token log-probs under the round's reference policy, computed once."""

from pathlib import Path

from flows.keys import reference_stage
from flows.stages import Context, Outcome
from flows.stages.examples import pair_examples
from pipeline.policy import load_for_scoring
from pipeline.reference import reference_logps
from pipeline.rows import REFERENCE, write_table


def reference(context: Context, round_: int, folder: Path) -> Outcome:
    """One row a pair, in the order of the pairs: float32 natural-log probabilities of each response token."""
    stage = reference_stage(context.run, context.config, round_)
    path = context.policy_path(stage.round) if stage.name == "policy" else stage.folder
    model = load_for_scoring(str(path), trust_remote_code=context.config.trusts_policy)
    examples = pair_examples(context, round_)
    training = context.config.training
    total = 2 * len(examples)
    logps = reference_logps(
        model,
        examples,
        training.micro_batch_size,
        training.dtype,
        lambda done: context.report(done, total, ""),
    )
    rows = [
        {"pair_id": example.id, "chosen": chosen, "rejected": rejected}
        for example, (chosen, rejected) in zip(examples, logps, strict=True)
    ]
    write_table(folder / "rows.parquet", REFERENCE, rows)
    return Outcome(len(rows), {"reference": stage.title})
