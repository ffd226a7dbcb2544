"""Cut a global batch into forward passes, the same number for every process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.config import Optimisation
from pipeline.config.loss.needs import Needs
from pipeline.training.batches.collate import TokenBatch, collate, plan_epoch
from pipeline.training.batches.examples import Example, Survey
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.distributed.launch import context_parallel

# Tokens of the longest row of an example (of a stream, all of them), and rows.
_Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cut:
    """Limits for cutting a global batch into forward passes.

    Attributes:
        examples: at most this many per pass.
        tokens: at most this many computed positions per pass, unless one example alone has more; None: no limit.
        packing: whether rows form one stream.
        context: number of processes that compute a pass together.
    """

    examples: int
    tokens: int | None = None
    packing: bool = False
    context: int = 1


@dataclass(frozen=True, slots=True)
class Lots:
    """Source of random draws, together with the example: the run's seed, and the epoch, from 0."""

    seed: int = 0
    epoch: int = 0


def cut_for(settings: Optimisation, device: str, packing: bool) -> Cut:
    """Return the cut of ``settings`` on a ``device`` ("cpu", "cuda")."""
    tokens = settings.micro_batch_tokens or (1024 if device == "cpu" else 16384)
    context = context_parallel(settings)
    return Cut(settings.micro_batch_size, tokens * context, packing, context)


def micro_batches(
    examples: Sequence[Example],
    cut: Cut,
    rank: int = 0,
    world: int = 1,
    *,
    needs: Needs | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[TokenBatch]:
    """Yield this process's share of a global batch, largest examples first, so that memory runs out at once or never.

    Every process gets the same number of forward passes with the same number of rows; where a process
    has no examples left, one is repeated and the batch's ``examples`` are empty or fewer.
    Processes that compute passes together have the same share. ``needs``, ``seed`` and ``epoch`` are as in ``collate``.
    """
    rank, world = rank // cut.context, max(1, world // cut.context)
    ordered = sorted(examples, key=lambda e: (-e.length, e.id))
    # The shares do not depend on packing, so that packed and padded rows can be compared.
    shares = [ordered[one::world] for one in range(world)]
    if cut.packing:
        shares = [sorted(share, key=lambda e: -e.distinct_tokens) for share in shares]
    mine = shares[rank]
    responses = max(len(e.responses) for e in ordered)
    filled = max(len(e.continuations) for e in ordered)
    sizes = [
        _most([_size(share[place], filled, cut) for share in shares if place < len(share)])
        for place in range(len(shares[0]))
    ]
    for places in _passes(sizes, cut):
        part = [mine[place] for place in places if place < len(mine)]
        yield collate(
            part,
            len(places),
            needs=needs,
            seed=seed,
            epoch=epoch,
            filler=(part or ordered)[0],
            responses=responses,
            packing=cut.packing,
        )


def tokens_of_a_pass(survey: Survey, batch_size: int, cut: Cut, seed: int) -> PassTokens:
    """Count the tokens of the first epoch; ``cut``: of each global batch, whether it packs or not."""
    plain, padded = replace(cut, packing=False), 0
    for batch in plan_epoch(survey.lengths, survey.tokens, batch_size, seed, 0):
        ordered = sorted(batch, key=lambda i: -survey.lengths[i])
        sizes = [(survey.lengths[i], survey.rows[i]) for i in ordered]
        padded += sum(_computed([sizes[place] for place in places], plain) for places in _passes(sizes, plain))
    return PassTokens(sum(survey.tokens), survey.row_tokens, padded)


def _size(example: Example, filled: int, cut: Cut) -> _Size:
    """Return tokens and rows of an example; groups are ``filled`` up to the largest, turns may have further rows."""
    return (example.distinct_tokens, 1) if cut.packing else (example.length, max(filled, len(example.read)))


def _most(sizes: Sequence[_Size]) -> _Size:
    """Return the most that any process computes at one place of the shares."""
    return max(length for length, _ in sizes), max(rows for _, rows in sizes)


def _computed(sizes: Sequence[_Size], cut: Cut) -> int:
    """Return the positions of a pass: of one stream, or of rows that are padded to the longest."""
    if cut.packing:
        return sum(length for length, _ in sizes)
    return max(length for length, _ in sizes) * sum(rows for _, rows in sizes)


def _passes(sizes: Sequence[_Size], cut: Cut) -> list[list[int]]:
    """Group places by pass, each in the last pass with room, so that streams are full and of similar lengths.

    Rows are padded to the longest of their pass, so they join the last pass or start a new one.
    """
    passes: list[list[int]] = []
    for place in range(len(sizes)):
        for members in reversed(passes if cut.packing else passes[-1:]):
            total = _computed([sizes[i] for i in (*members, place)], cut)
            if len(members) < cut.examples and (cut.tokens is None or total <= cut.tokens):
                members.append(place)
                break
        else:
            passes.append([place])
    return passes
