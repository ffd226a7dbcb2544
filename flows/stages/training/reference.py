"""reference: log-probs of the round's responses under frozen models, one folder of shards per model.

Only one model is in memory at a time: the reference policy, or several, then the two contrasting models if the loss
weights tokens by them. The log-probs of a model for the same tokens are computed once for all runs in a folder; see
``training.reference_cache``.
"""

import logging
import math
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

from pydantic import JsonValue

from flows.run_folder.ancestry import reference_stages
from flows.run_folder.stage_keys import reference_name
from flows.stages.context import Context, Outcome, keep_rows, offending_file
from flows.stages.training.examples import NEGATIVE, POSITIVE, round_examples
from flows.stages.training.frozen import FrozenPolicy
from pipeline.config.loss.components import ExtrapolatedPrior
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import START
from pipeline.errors import RunError
from pipeline.models.policy import local_folder
from pipeline.models.weights.weight_format import FLOAT32
from pipeline.storage.atomic import discard
from pipeline.storage.parquet.tables import Row
from pipeline.storage.rows import REFERENCE, read_rows, write_table
from pipeline.storage.seals import Seals
from pipeline.training.batches.example_table import ExampleTable, write_examples
from pipeline.training.batches.examples import Example
from pipeline.training.batches.reference_cache import (
    ENTRY,
    DamagedEntryError,
    ReferenceCache,
    entry_key,
    require_stored,
    tokens_digest,
    weights_digest,
)
from pipeline.training.watch.self_test import SAME_MODEL, SAME_MODEL_RESPONSE
from pipeline.types import derive_seed

# Examples of a shard: the number in memory at a time, and the most that a kill can lose.
SHARD = 1024
# Next to the stage: shards that were made while its pairs were not complete, by the content that they are of.
AHEAD = "reference.ahead"
# How many examples from the cache are computed again to check it.
SPOT_CHECKED = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass of one model (a folder or a hub name) over all examples; fills the folder ``name``."""

    name: str
    model: str
    entropy: bool = False


@dataclass(slots=True)
class Origin:
    """Where the passes came from: names of those from the cache, and the reasons for those refused from it."""

    cached: list[str] = field(default_factory=list)
    refused: dict[str, JsonValue] = field(default_factory=dict)


def reference(context: Context, round_: int, folder: Path) -> Outcome:
    """Write one row per example for each model, in the examples' order; see ``rows.REFERENCE``."""
    table = folder / "examples.arrow"
    write_examples(table, round_examples(context, round_))
    examples, passes, origin = ExampleTable(table), passes_of(context, round_), Origin()
    taken = 0
    for number, one in enumerate(passes):
        with ReferenceScores(context, round_, examples, one, (number, len(passes))) as scores:
            scores.fill(folder / one.name, origin)
            taken += scores.ahead
    table.unlink()
    discard(ahead_of(context, round_))
    return Outcome(
        len(examples),
        {
            "reference": reference_stages(context.run, context.config, round_)[0].title,
            "reference_from_cache": len(origin.cached) == len(passes),
            "passes": {one.name: "cache" if one.name in origin.cached else "computed" for one in passes},
            "cache_refused": origin.refused,
            **({"shards_made_ahead": taken} if taken else {}),
        },
    )


def reference_models(context: Context, round_: int) -> list[str]:
    """Model folders (or hub names) in the order of the loss's references, starting with the round's own."""
    stages = reference_stages(context.run, context.config, round_)
    further = context.config.training.references
    own = [str(context.model_path(stage)) for stage in stages]
    if isinstance(context.config.loss.inputs.prior, ExtrapolatedPrior):
        # They are the checkpoint before the start policy, which only round 1 reads.
        return own if len(own) > 1 else [*own, *further]
    return [own[0], *(str(context.policy_path(0)) if name == START else name for name in further)]


def ahead_of(context: Context, round_: int) -> Path:
    """The folder of shards that were made while the round's pairs were not complete."""
    return context.run.stage(round_, "reference").folder.with_name(AHEAD)


def passes_of(context: Context, round_: int) -> list[Pass]:
    """The passes of a round, in order."""
    loss, contrast = context.config.loss, context.config.training.contrastive
    wants_entropy = loss.inputs.dispersion is not None
    models = reference_models(context, round_)[: max(needs_of(loss).references, int(wants_entropy))]
    found = [Pass(reference_name(i), model, wants_entropy and i == 0) for i, model in enumerate(models)]
    if needs_of(loss).contrast:
        assert contrast is not None, "checked before the run"
        found += [Pass(POSITIVE, contrast.positive), Pass(NEGATIVE, contrast.negative)]
    return found


class ReferenceScores:
    """Log-probs of the examples under one model: from the cache, or computed shard by shard.

    ``ahead`` counts shards that had been made before.
    """

    def __init__(
        self, context: Context, round_: int, examples: Sequence[Example], one: Pass, number: tuple[int, int]
    ) -> None:
        """``number``: the pass's number and the number of passes."""
        self._context, self._examples, self._pass, self._number = context, examples, one, number
        self._round = round_
        self._lots = derive_seed(context.config.seed, "spot check", round_, one.name)
        self._held = context.held_as(str(local_folder(one.model)))
        self._dtype = self._held.passes(context.config.training.dtype)
        self._model = FrozenPolicy(context, one.model, self._held, self._dtype)
        self.ahead = 0

    def __enter__(self) -> "ReferenceScores":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.__exit__(kind, error, trace)

    def fill(self, place: Path, origin: Origin) -> None:
        """Make the folder ``place``, continuing what an earlier attempt has left there."""
        given = self._context.config.training.reference_cache
        if given is None:
            self._compute(place)
            return
        cache = ReferenceCache(self._context.run.root / given)
        model, dtype = self._weights, self._computed
        key = self.key(self._examples)
        if _taken(place) or (not place.exists() and self._take(cache, key, place, origin)):
            origin.cached.append(self._pass.name)
            return
        self._compute(place)
        try:
            cache.store(key, place, {"model": model, "dtype": dtype, "examples": len(self._examples)})
        except OSError as error:
            logger.warning("reference cache: could not store the entry: %s", error)

    def key(self, examples: Iterable[Example]) -> str:
        """Return the key of ``examples``' values, from everything that they depend on."""
        return entry_key(tokens_digest(examples), self._weights, self._computed, self._pass.entropy)

    @cached_property
    def _weights(self) -> str:
        return weights_digest(local_folder(self._pass.model))

    @property
    def _computed(self) -> str:
        # float32 weights are computed with in either precision.
        return self._dtype if self._held == FLOAT32 else f"{self._dtype} by {self._held.title}"

    def _take(self, cache: ReferenceCache, key: str, place: Path, origin: Origin) -> bool:
        """Take ``place`` from the cache; return whether it worked. Drops a damaged entry: all of it can be computed."""
        unchecked = place.with_name(f"{place.name}.unchecked")
        try:
            if not cache.fetch(key, unchecked):
                return False
            self._spot_check(unchecked)
        except DamagedEntryError as error:
            logger.warning("reference cache: %s; computed again", error)
            origin.refused[self._pass.name] = str(error)
            with suppress(OSError):
                cache.drop(key)
            shutil.rmtree(unchecked, ignore_errors=True)
            return False
        unchecked.rename(place)
        return True

    def _spot_check(self, place: Path) -> None:
        """Compute a few examples again. Raises ``DamagedEntryError`` if their log-probabilities differ."""
        dtype, count = self._dtype, len(self._examples)
        chosen = sorted(random.Random(self._lots).sample(range(count), min(count, SPOT_CHECKED)))  # noqa: S311
        stored = [row for index, row in enumerate(read_rows(place)) if index in chosen or index >= count]
        examples = [self._examples[index] for index in chosen]
        found = self._model.values(examples, entropy=self._pass.entropy)
        if len(stored) != len(examples):
            raise DamagedEntryError(f"{place.name}: not one row for each of {count} examples")
        nats = tokens = 0.0
        for example, row, values in zip(examples, stored, found, strict=True):
            if row["id"] != example.id or [*map(len, row["logps"])] != [*map(len, values.logps)]:
                raise DamagedEntryError(f"{place.name}: rows of other examples")
            if not abs((row["entropy"] or 0) - (values.entropy or 0)) <= SAME_MODEL[dtype]:
                told = f"{place.name}: entropy {row['entropy']} of example {example.id}, not {values.entropy}"
                raise DamagedEntryError(told)
            for theirs, ours in zip(row["logps"], values.logps, strict=True):
                apart = sum(abs(a - b) for a, b in zip(theirs, ours, strict=True))
                if not apart <= SAME_MODEL_RESPONSE[dtype] * len(ours):
                    raise DamagedEntryError(_told(example, apart / len(ours), SAME_MODEL_RESPONSE[dtype]))
                nats, tokens = nats + apart, tokens + len(ours)
        if not nats <= SAME_MODEL[dtype] * tokens:
            raise DamagedEntryError(_told(examples[0], nats / tokens, SAME_MODEL[dtype]))

    def _compute(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        seals = Seals(place)
        for number, start in enumerate(range(0, len(self._examples), SHARD)):
            file = place / f"shard_{number:05d}.parquet"
            if seals.hold(file.name):
                continue
            examples = self._examples[start : start + SHARD]
            if not self._made_ahead(file, examples, seals):
                self.write(file, examples, seals, start)

    def _made_ahead(self, file: Path, examples: Sequence[Example], seals: Seals) -> bool:
        """Move the shard of ``examples`` to ``file``, if it was made before; return whether it was."""
        folder = ahead_of(self._context, self._round)
        if not folder.is_dir():
            return False
        found = folder / f"{self.key(examples)}.parquet"
        if not Seals(folder).hold(found.name):
            return False
        seals.of(file.name)(found)
        found.replace(file)
        self.ahead += 1
        return True

    def write(self, file: Path, examples: Sequence[Example], seals: Seals, start: int = 0) -> None:
        """Compute the shard of ``examples``, of which ``start`` come before it."""
        write_table(file, REFERENCE, self._rows(examples, start), seals.of(file.name))

    def _rows(self, examples: Sequence[Example], start: int) -> Iterator[Row]:
        rows = sum(len(example.read) for example in examples)

        def report(done: int) -> None:
            number, passes = self._number
            reached = number * len(self._examples) + start + done * len(examples) // rows
            self._context.report(reached, passes * len(self._examples), "")

        values = self._model.values(examples, report, entropy=self._pass.entropy)
        for example, value in zip(examples, values, strict=True):
            self._require_finite(example, [logp for logps in value.logps for logp in logps], value.entropy)
            yield {"id": example.id, "logps": value.logps, "entropy": value.entropy}

    def _require_finite(self, example: Example, logps: Sequence[float], entropy: float | None) -> None:
        """Raise ``RunError`` if the model gives NaN or infinite values; the shard is not kept."""
        if all(map(math.isfinite, logps)) and (entropy is None or math.isfinite(entropy)):
            return
        kept = offending_file(self._context, f"round_{self._round:03d}/reference")
        keep_rows(self._context, self._round, [example.id], kept)
        raise RunError(
            f"log-probabilities of example {example.id} under {self._pass.model} are not finite; the row is in {kept}, "
            "the shard is not kept"
        )


def _taken(place: Path) -> bool:
    """Whether an earlier attempt at this stage has taken it whole from the cache. Removes a damaged copy."""
    if not (place / ENTRY).exists():
        return False
    try:
        require_stored(place, place)
    except DamagedEntryError as error:
        logger.warning("%s; made again", error)
        discard(place)
        return False
    return True


def _told(example: Example, apart: float, allowed: float) -> str:
    return (
        f"the reference model gives other log-probabilities than are stored, by {apart:.3g} nats per token "
        f"(allowed {allowed:g}; example {example.id})"
    )
