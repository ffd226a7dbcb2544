"""Random batches for tests of losses, in float64: ragged, with one-token responses and with every optional field.

What stands outside the mask is NaN unless a test says otherwise, so that whoever reads it is found out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.losses import GroupBatch, PairBatch, Side, UnpairedBatch

CHOSEN_LENGTHS = (3, 1, 5, 2, 4, 1)
REJECTED_LENGTHS = (1, 4, 2, 2, 6, 1)
CALIBRATION_LENGTHS = (2, 3, 1, 4, 1, 2)


def random_side(
    lengths: Sequence[int],
    draw: torch.Generator,
    references: int = 1,
    at_reference: bool = False,
    filler: float = math.nan,
    spread: float = 0.6,
) -> Side:
    """Responses of ``lengths`` tokens, which start at differing columns; ``policy`` and what is learned are leaves.

    Args:
        lengths: tokens of each response.
        draw: where the numbers come from.
        references: of reference models; above 1, ``reference`` is [K, B, T].
        at_reference: policy and every reference agree, and their divergence is 0.
        filler: what stands outside the mask.
        spread: deviation of a token's log-ratio, nats.
    """
    rows, width = len(lengths), max(lengths) + 2
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, row % 2 : row % 2 + length] = True

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, rows, width, generator=draw, dtype=torch.float64)

    def filled(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, filler)

    # Of a generator of their own, so that the other numbers stay.
    apart = torch.Generator().manual_seed(draw.initial_seed() + sum(lengths))
    estimated = torch.randn(3, rows, width, generator=apart, dtype=torch.float64)
    policy = uniform(-3.0, -0.1)
    noise = torch.randn(references, rows, width, generator=draw, dtype=torch.float64)
    reference = (policy - (0.0 if at_reference else spread) * noise).clamp(max=-1e-3)
    return Side(
        policy=filled(policy).requires_grad_(),
        mask=mask,
        reference=filled(reference) if references > 1 else filled(reference[0]),
        kl=filled(uniform(0.0, 0.0 if at_reference else 0.4)).requires_grad_(),
        ref_entropy=filled(uniform(0.1, 3.0)),
        collision=filled(uniform(0.2, 0.9)),
        weights=filled(uniform(0.2, 1.5)).requires_grad_(),
        kl_weights=filled(uniform(0.2, 1.5)).requires_grad_(),
        edited=(uniform(0.0, 1.0) < 0.5) & mask,
        prior=filled(uniform(-1.0, 0.5)).requires_grad_(),
        advantage=filled(estimated[0]),
        returns=filled(estimated[1]),
        token_value=filled(estimated[2]).requires_grad_(),
    )


def random_pairs(
    seed: int = 0,
    chosen: Sequence[int] = CHOSEN_LENGTHS,
    rejected: Sequence[int] = REJECTED_LENGTHS,
    references: int = 1,
    at_reference: bool = False,
    soft_labels: bool = False,
    filler: float = math.nan,
    spread: float = 0.6,
) -> PairBatch:
    """Pairs with every optional field but the soft label, which is there if ``soft_labels``."""
    draw = torch.Generator().manual_seed(seed)
    pairs = len(chosen)
    calibration = [CALIBRATION_LENGTHS[row % len(CALIBRATION_LENGTHS)] for row in range(pairs)]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(pairs, generator=draw, dtype=torch.float64)

    w, v, y = (random_side(n, draw, references, at_reference, filler, spread) for n in (chosen, rejected, calibration))
    return PairBatch(
        chosen=w,
        rejected=v,
        calibration=y,
        soft_label=uniform(0.5, 1.0) if soft_labels else None,
        reward_chosen=uniform(-1.0, 3.0),
        reward_rejected=uniform(-3.0, 2.0),
        win_probability=uniform(0.3, 0.95),
        win_probability_rejected=uniform(0.05, 0.7),
        dispersion=uniform(0.3, 2.0),
        value=uniform(-1.0, 1.0).requires_grad_(),
        critic_chosen=uniform(-2.0, 2.0).requires_grad_(),
        critic_rejected=uniform(-2.0, 2.0).requires_grad_(),
        seeds=torch.randint(0, 2**31, (pairs,), generator=draw),
    )


def random_unpaired(
    seed: int = 0, lengths: Sequence[int] = CHOSEN_LENGTHS, at_reference: bool = False, filler: float = math.nan
) -> UnpairedBatch:
    """Single responses, every other one desirable, with mismatched ones."""
    draw = torch.Generator().manual_seed(seed)
    desirable = torch.tensor([row % 2 == 0 for row in range(len(lengths))])
    responses, mismatched = (
        random_side(n, draw, at_reference=at_reference, filler=filler) for n in (lengths, lengths[::-1])
    )
    return UnpairedBatch(responses=responses, desirable=desirable, mismatched=mismatched)


def random_groups(
    seed: int = 0,
    responses: int = 4,
    prompts: int = 5,
    at_reference: bool = False,
    gaps: bool = False,
    filler: float = math.nan,
    references: int = 1,
) -> GroupBatch:
    """Groups of ``responses`` to each prompt; with ``gaps`` every other prompt lacks its last one (K > 2)."""
    draw = torch.Generator().manual_seed(seed)
    sides = tuple(
        random_side([1 + (2 * row + 3 * k) % 5 for row in range(prompts)], draw, references, at_reference, filler)
        for k in range(responses)
    )
    rewards = 3 * torch.rand(prompts, responses, generator=draw, dtype=torch.float64) - 1
    present = torch.ones(prompts, responses, dtype=torch.bool)
    present[::2, -1] = False
    return GroupBatch(responses=sides, rewards=rewards, present=present if gaps else None)


@dataclass(frozen=True, slots=True)
class Response:
    """One response without its padding, for formulas that are written out; lower-case names as in the papers.

    Attributes:
        p: [n] log π of its tokens.
        refs: [K, n] log π_ref of each reference.
        side: everything that is known.
        row: of ``side``.
    """

    p: Tensor
    refs: Tensor
    side: Side
    row: int

    @property
    def n(self) -> int:
        """Its length."""
        return len(self.p)

    @property
    def q(self) -> Tensor:
        """[n] log π_ref."""
        return self.refs[0]

    @property
    def h(self) -> Tensor:
        """Σ (p − q)."""
        return (self.p - self.q).sum()

    def of(self, name: str) -> Tensor:
        """[n] another field of the side."""
        found: Tensor = getattr(self.side, name)[self.row][self.side.mask[self.row]]
        return found


def response(side: Side | None, row: int) -> Response:
    """Row ``row`` of a side."""
    assert side is not None and side.reference is not None
    refs = side.reference if side.reference.ndim == 3 else side.reference[None]
    where = side.mask[row]
    return Response(side.policy[row][where], refs[:, row][:, where], side, row)


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair: the chosen response ``w``, the rejected one ``v``, and the row of the batch that they are from."""

    w: Response
    v: Response
    batch: PairBatch
    row: int

    @property
    def d(self) -> Tensor:
        """h_w − h_l."""
        return self.w.h - self.v.h

    def of(self, name: str) -> Tensor:
        """A field of the batch, 0-d."""
        found: Tensor = getattr(self.batch, name)[self.row]
        return found


def pairs_of(batch: PairBatch) -> list[Pair]:
    """The pairs one by one."""
    rows = range(len(batch.chosen.policy))
    return [Pair(response(batch.chosen, i), response(batch.rejected, i), batch, i) for i in rows]


def leaves(batch: PairBatch | UnpairedBatch | GroupBatch) -> dict[str, Tensor]:
    """Whatever a gradient can reach, by path: ``chosen.policy``, ``responses.2.kl``, ``value``."""
    found: dict[str, Tensor] = {}
    for field in fields(batch):
        part = getattr(batch, field.name)
        named = {f"{field.name}.{k}": side for k, side in enumerate(part)} if isinstance(part, tuple) else {}
        for name, side in (named or {field.name: part}).items():
            if isinstance(side, Side):
                found |= {f"{name}.{inner.name}": getattr(side, inner.name) for inner in fields(side)}
            else:
                found[name] = side
    return {name: leaf for name, leaf in found.items() if isinstance(leaf, Tensor) and leaf.requires_grad}


def value_and_gradient(
    per_pair: Tensor, batch: PairBatch | UnpairedBatch | GroupBatch
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of each pair, detached, and the gradient of Σ_i (1 + i / 2) L_i by each of ``leaves``; 0 where none."""
    parts = leaves(batch)
    cotangent = 1 + torch.arange(len(per_pair), dtype=per_pair.dtype) / 2
    gradients = torch.autograd.grad(
        (cotangent * per_pair).sum(), tuple(parts.values()), retain_graph=True, allow_unused=True
    )
    return per_pair.detach(), {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(parts.items(), gradients, strict=True)
    }


def assert_same(
    ours: Tensor,
    theirs: Tensor,
    batch: PairBatch | UnpairedBatch | GroupBatch,
    rtol: float = 1e-10,
    atol: float = 1e-11,
) -> None:
    """Two ways to the loss of ``batch`` agree in value and in gradient."""
    (value, slopes), (expected, expected_slopes) = (value_and_gradient(loss, batch) for loss in (ours, theirs))
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    for name, slope in slopes.items():
        where = f"gradient by {name}: {{}}".format
        torch.testing.assert_close(slope, expected_slopes[name], rtol=rtol, atol=atol, msg=where)
