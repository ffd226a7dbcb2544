"""Passes without gradient: how sequences are cut into passes, and how the training processes share them.

Which sequences are in a pass does not depend on the number of processes: each process takes whole passes, so the values
do not change. The main process says what is computed; the others follow it (``follow_passes``).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from pipeline.config.loss.needs import Fact
from pipeline.errors import RunError
from pipeline.images.draw_scores import DrawScores
from pipeline.models.output_head import at_tokens
from pipeline.models.policy import dropout_off, load_for_scoring, load_policy
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.weight_format import Precision, WeightFormat
from pipeline.training.auxiliary.heads import ValueHead
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example, Logps
from pipeline.training.distributed.fsdp import shard_frozen
from pipeline.training.distributed.launch import Placement, Sharding

# Most tokens computed in one pass, unless one sequence alone has more.
PASS_TOKENS = 16384

# (prompt ids, response ids) of each.
Sequences = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
# Of a sequence's response tokens: log-probabilities, and entropies or values if they are wanted.
PassValues = tuple[Logps, tuple[float, ...]]
OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PassJob:
    """Sequences to compute, at most ``batch_size`` in a pass, with products in ``dtype``.

    ``value_head``: the values that are wanted in place of entropies are those of this head.
    """

    sequences: Sequences
    batch_size: int
    dtype: Precision
    wants: frozenset[Fact]
    value_head: ValueHead | None = None


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A model that is not trained: its folder, how its weights are held, and whether its own code may run."""

    path: str
    held: WeightFormat
    trust_remote_code: bool


def load_shared(wanted: FrozenModel, among: Placement | None) -> Any:
    """Load ``wanted`` for passes, in all processes; the main process calls this.

    With FSDP2, each process holds a slice of every layer. Raises as ``load_policy`` does.
    """
    _send(wanted, among)
    return _loaded(wanted, among)


def pass_values(
    model: Any, job: PassJob, on_progress: OnProgress | None = None, among: Placement | None = None
) -> list[PassValues]:
    """Return the values of each sequence, in their order; the main process calls this.

    Args:
        model: from ``load_shared``, or any policy if this process is alone.
        job: what to compute.
        on_progress: called with the number of finished sequences.
        among: this process's place among those that compute together; None: it is alone.
    """
    _send(job, among)
    own = _share(model, job, on_progress, among)
    parts = [own]
    if among is not None and among.accelerator.num_processes > 1:
        parts = [own] * among.accelerator.num_processes
        distributed.gather_object(own, parts)
    found: dict[int, PassValues] = {}
    for part in parts:
        found |= part
    return [found[i] for i in range(len(job.sequences))]


def follow_passes(among: Placement) -> None:
    """Take part in what the main process computes, in another process, until it calls ``end_passes``."""
    model: Any = None
    while True:
        asked: list[Any] = [None]
        distributed.broadcast_object_list(asked)
        match asked[0]:
            case FrozenModel() as wanted:
                # The model before is freed first.
                model = None
                model = _loaded(wanted, among)
            case PassJob() as job:
                distributed.gather_object(_share(model, job, None, among))
            case None:
                return
            case other:
                raise RunError(f"the main process asked for {type(other).__name__}, which is no pass")


def end_passes(among: Placement) -> None:
    """Let the other processes return from ``follow_passes``."""
    _send(None, among)


def _send(what: FrozenModel | PassJob | None, among: Placement | None) -> None:
    if among is not None and among.accelerator.num_processes > 1:
        distributed.broadcast_object_list([what])


def _loaded(wanted: FrozenModel, among: Placement | None) -> Any:
    if among is None or not isinstance(among.sharding, Sharding):
        return load_for_scoring(wanted.path, wanted.held, trust_remote_code=wanted.trust_remote_code)
    model = load_policy(wanted.path, trust_remote_code=wanted.trust_remote_code, held=wanted.held).requires_grad_(False)
    shard_frozen(model, among.sharding, among.accelerator)
    return model


def _share(model: Any, job: PassJob, on_progress: OnProgress | None, among: Placement | None) -> dict[int, PassValues]:
    """Compute this process's passes; return the values by the place of their sequence."""
    score = pass_scores(model, job)
    passes = cut_passes(score, job)
    rank, processes = (0, 1) if among is None else (among.accelerator.process_index, among.accelerator.num_processes)
    # Where layers are sharded, every process takes part in gathering them, also for a pass that it has not.
    sharded = among is not None and isinstance(among.sharding, Sharding)
    found: dict[int, PassValues] = {}
    done = 0
    # Around all passes: walking over the modules of a small network takes a tenth of a pass's time.
    with dropout_off(score.model):
        for turn in range(math.ceil(len(passes) / processes)):
            together = passes[turn * processes : (turn + 1) * processes]
            if rank < len(together):
                found |= one_pass(score, job.sequences, together[rank], job.value_head)
            elif sharded:
                one_pass(score, job.sequences, together[0], job.value_head)
            done += sum(map(len, together))
            if on_progress is not None:
                on_progress(done)
    return found


def pass_scores(model: Any, job: PassJob) -> TokenLogps | DrawScores:
    """Return ``model`` as passes of ``job`` call it."""
    return model if isinstance(model, DrawScores) else TokenLogps(model, job.dtype, job.wants, share_prompts=True)


def cut_passes(score: TokenLogps | DrawScores, job: PassJob) -> list[list[int]]:
    """Return the places of the sequences that are in each pass, the longest first."""
    size = sequences_a_pass(job.batch_size, score.model.device.type)
    return [*_batches(job.sequences, size, score.padded_because is None)]


@torch.no_grad()
def one_pass(
    score: TokenLogps | DrawScores, sequences: Sequences, rows: Sequence[int], value_head: ValueHead | None = None
) -> dict[int, PassValues]:
    """Compute one pass over the sequences ``rows``, with dropout as it is; return their values by place."""
    packing = score.padded_because is None
    batch = collate([Example.text("", *sequences[i]) for i in rows], packing=packing).to(score.model.device)
    facts, mask = score(batch.ids, batch.mask, batch.packed), batch.mask.cpu()
    wanted = facts.entropy
    if value_head is not None:
        assert facts.hidden is not None, "wanted together with the head"
        wanted = at_tokens(value_head.to(facts.hidden.device)(facts.hidden), batch.mask)
    logps, beside = facts.policy.cpu(), None if wanted is None else wanted.cpu()
    found: dict[int, PassValues] = {}
    for row, i in enumerate(rows):
        values = () if beside is None else tuple(beside[row][mask[row]].tolist())
        found[i] = tuple(logps[row][mask[row]].tolist()), values
    return found


def sequences_a_pass(wanted: int, device: str) -> int:
    """Most sequences of a pass without gradient: on an accelerator tokens limit it, not ``wanted``, for training."""
    return wanted if device == "cpu" else max(wanted, PASS_TOKENS)


def _batches(sequences: Sequences, size: int, packing: bool) -> Iterator[list[int]]:
    """Yield indices by pass, at most ``size`` sequences and ``PASS_TOKENS`` tokens each, the longest first.

    If prompts are shared, sequences of one prompt are next to each other.
    """

    def rank(i: int) -> tuple[int, tuple[int, ...], int]:
        prompt, ids = sequences[i]
        return (-len(prompt), prompt, -len(ids)) if packing else (-len(prompt) - len(ids), (), i)

    rows: list[int] = []
    total = 0
    for i in sorted(range(len(sequences)), key=rank):
        prompt, ids = sequences[i]
        shared = packing and bool(rows) and sequences[rows[-1]][0] == prompt
        cost = len(ids) + (0 if shared else len(prompt))
        if rows and (len(rows) == size or total + cost > PASS_TOKENS):
            yield rows
            rows, total, cost = [], 0, len(prompt) + len(ids)
        rows.append(i)
        total += cost
    if rows:
        yield rows
