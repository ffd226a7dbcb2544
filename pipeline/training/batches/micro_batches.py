"""A global batch cut into forward passes, the same number of them for every process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config import Optimisation
from pipeline.config.loss.needs import Needs
from pipeline.training.batches.collate import TokenBatch, collate
from pipeline.training.batches.examples import Example


@dataclass(frozen=True, slots=True)
class Cut:
    """How a global batch is cut into forward passes.

    Attributes:
        examples: at most this many a pass.
        tokens: at most this many computed positions a pass, unless one example alone has more; None: any number.
        packing: whether rows go as one stream.
    """

    examples: int
    tokens: int | None = None
    packing: bool = False


def cut_for(settings: Optimisation, device: str, packing: bool) -> Cut:
    """The cut that ``settings`` ask for on a ``device`` ("cpu", "cuda")."""
    tokens = settings.micro_batch_tokens or (1024 if device == "cpu" else 16384)
    return Cut(settings.micro_batch_size, tokens, packing)


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
    """This process's share of a global batch, largest examples first, so that memory runs out at once or never.

    Every process gets the same number of forward passes with the same number of rows; where there
    is nothing left to do, an example is repeated and its ``examples`` are empty or fewer.
    ``needs``, ``seed`` and ``epoch`` are as in ``collate``.
    """
    ordered = sorted(examples, key=lambda e: (-e.length, e.id))
    # Who has which example does not depend on packing: either form of it can be compared with the other.
    shares = [ordered[one::world] for one in range(world)]
    if cut.packing:
        shares = [sorted(share, key=lambda e: -e.distinct_tokens) for share in shares]
    mine = shares[rank]
    responses = max(len(e.responses) for e in ordered)
    # Of each place in the processes' shares, the most that one process computes there.
    costs = [max(_cost(share[place], cut) for share in shares if place < len(share)) for place in range(len(shares[0]))]
    for places in _passes(costs, cut):
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


def _cost(example: Example, cut: Cut) -> int:
    rows = len(example.continuations)
    return example.distinct_tokens if cut.packing else rows * example.length


def _passes(costs: Sequence[int], cut: Cut) -> list[list[int]]:
    """Places by pass, each in the last that has room for it, so that streams are full and of similar lengths.

    Rows are padded to the longest of their pass, which comes first, so these join the last pass or none.
    """
    passes: list[list[int]] = []
    for place, cost in enumerate(costs):
        for members in reversed(passes if cut.packing else passes[-1:]):
            total = sum(costs[i] for i in members) + cost if cut.packing else costs[members[0]] * (len(members) + 1)
            if len(members) < cut.examples and (cut.tokens is None or total <= cut.tokens):
                members.append(place)
                break
        else:
            passes.append([place])
    return passes
