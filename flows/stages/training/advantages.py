"""advantages: what each token of the round's responses was worth, by the value head of the policy that wrote them.

The values are those of the policy that the round starts from, with the head that it left; before the first, they are 0.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import parent
from flows.stages.context import Context, Outcome, keep_rows, offending_file
from flows.stages.training.examples import round_examples
from flows.stages.training.frozen import FrozenPolicy
from flows.stages.training.train import HEADS
from pipeline.config.loss.terms import TokenAdvantageHead
from pipeline.errors import RunError
from pipeline.storage.parquet.tables import Row
from pipeline.storage.rows import ADVANTAGES, TOKEN_VALUES, read_rows, write_table
from pipeline.storage.seals import Seals
from pipeline.training.auxiliary.heads import ValueHead, carried_value_head
from pipeline.training.batches.advantages import Moments, estimates
from pipeline.training.batches.example_table import ExampleTable, write_examples
from pipeline.training.batches.examples import Example, Logps

# Examples of a shard: the number in memory at a time, and the most that a kill can lose.
_SHARD = 1024

Numbers = list[list[float]]


def estimate_advantages(context: Context, round_: int, folder: Path) -> Outcome:
    """Write one row per example, in their order: the advantages, whitened over the round, and returns of its tokens."""
    settings = context.config.loss.inputs.head
    assert isinstance(settings, TokenAdvantageHead), "the stage runs only for it"
    table, places = folder / "examples.arrow", folder / "values"
    write_examples(table, round_examples(context, round_))
    examples = ExampleTable(table)
    origin = context.run.stage(parent(context.run, context.config, round_), "policy")
    head = carried_value_head(origin.folder / HEADS)
    if head is not None:
        _compute(context, round_, examples, head, places)
    advantages, returns = Moments(), Moments()
    for _, found, gains in _raw(examples, places, settings):
        for of_response, gain in zip(found, gains, strict=True):
            advantages.add(of_response)
            returns.add(gain)
    rows = (
        {"id": example.id, "advantages": [*map(advantages.whitened, found)], "returns": gains}
        for example, found, gains in _raw(examples, places, settings)
    )
    count = write_table(folder / "rows.parquet", ADVANTAGES, rows)
    shutil.rmtree(places, ignore_errors=True)
    table.unlink()
    facts: dict[str, JsonValue] = {
        "value_head": None if head is None else origin.title,
        "tokens": advantages.count,
        "advantage_mean": advantages.mean,
        "advantage_deviation": math.sqrt(advantages.variance),
        "return_deviation": math.sqrt(returns.variance),
    }
    return Outcome(count, facts)


def _compute(context: Context, round_: int, examples: ExampleTable, head: ValueHead, places: Path) -> None:
    """Write the values of all response tokens, shard by shard; go on where an earlier attempt ended."""
    places.mkdir(exist_ok=True)
    seals = Seals(places)
    path = context.policy_path(parent(context.run, context.config, round_))
    with FrozenPolicy(context, path) as model:
        for number, start in enumerate(range(0, len(examples), _SHARD)):
            file = places / f"shard_{number:05d}.parquet"
            if seals.hold(file.name):
                continue
            shard = examples[start : start + _SHARD]
            rows = sum(len(example.read) for example in shard)

            def report(done: int, start: int = start, share: float = len(shard) / rows) -> None:
                context.report(start + int(done * share), len(examples), "")

            found = model.token_values(shard, head, report)
            _require_finite(context, round_, shard, found)
            table = ({"id": e.id, "values": v} for e, v in zip(shard, found, strict=True))
            write_table(file, TOKEN_VALUES, table, seals.of(file.name))


def _raw(
    examples: ExampleTable, places: Path, settings: TokenAdvantageHead
) -> Iterator[tuple[Example, Numbers, Numbers]]:
    """Yield each example with advantages and returns of its responses' tokens, from the values, or without any."""
    rows: Iterator[Row] | None = read_rows(places) if places.is_dir() else None
    for example in examples:
        values = [[0.0] * len(c.ids) for c in example.responses] if rows is None else next(rows)["values"]
        found = [
            estimates(of_response, c.reward or 0.0, settings.gamma, settings.gae_lambda)
            for of_response, c in zip(values, example.responses, strict=True)
        ]
        yield example, [advantages for advantages, _ in found], [returns for _, returns in found]


def _require_finite(
    context: Context, round_: int, shard: Sequence[Example], found: Sequence[tuple[Logps, ...]]
) -> None:
    """Raise ``RunError`` if a value is NaN or infinite; the shard is not kept."""
    for example, values in zip(shard, found, strict=True):
        if not all(math.isfinite(value) for of_response in values for value in of_response):
            kept = offending_file(context, f"round_{round_:03d}/advantages")
            keep_rows(context, round_, [example.id], kept)
            raise RunError(
                f"the value head's values of example {example.id} are not finite; the row is in {kept}, the shard is "
                "not kept"
            )
