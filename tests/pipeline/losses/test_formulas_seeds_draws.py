"""SamPO, whose formula needs to know what was drawn, and Mallows-φ, whose link is made smooth near 0."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.losses import PairBatch, load_preset
from tests.support.loss_batches import Pair, assert_same, pairs_of, random_pairs, value_and_gradient

# ------------------------------------------------------------------------------------- SamPO


def drawn(batch: PairBatch, **settings: object) -> list[tuple[Tensor, Tensor]]:
    """Which tokens count: those that the gradient reaches, chosen and rejected of each pair."""
    slopes = value_and_gradient(load_preset("sampo", **settings)(batch).per_pair, batch)[1]
    found = []
    for x in pairs_of(batch):
        chosen, rejected = slopes["chosen.policy"][x.row], slopes["rejected.policy"][x.row]
        found.append((chosen[batch.chosen.mask[x.row]] != 0, rejected[x.v.side.mask[x.row]] != 0))
    return found


@pytest.mark.parametrize("keep_end", [False, True])
def test_sampo_is_dpo_on_as_many_tokens_as_the_shorter_response_has(keep_end: bool) -> None:
    beta = 0.4
    for seed in range(4):
        batch = random_pairs(seed)
        rows = []
        for x, (in_w, in_v) in zip(pairs_of(batch), drawn(batch, beta=beta, keep_end=keep_end), strict=True):
            assert in_w.sum() == in_v.sum() == min(x.w.n, x.v.n)
            assert not keep_end or (in_w[-1] and in_v[-1])
            z = beta * ((x.w.p - x.w.q)[in_w].sum() - (x.v.p - x.v.q)[in_v].sum())
            rows.append(torch.log(1 + torch.exp(-z)))
        ours = load_preset("sampo", beta=beta, keep_end=keep_end)(batch).per_pair
        assert_same(ours, torch.stack(rows), batch)


def test_the_lot_depends_on_the_seed_of_the_pair_alone() -> None:
    batch = random_pairs(0, chosen=[12] * 6, rejected=[5] * 6)
    assert batch.seeds is not None and batch.rejected is not None
    first = [in_w for in_w, _ in drawn(batch)]
    order = torch.tensor([5, 3, 4, 1, 0, 2])
    moved = random_pairs(1, chosen=[12] * 6, rejected=[5] * 6, filler=0.0)
    again = drawn(replace(moved, seeds=batch.seeds[order]))
    assert all(torch.equal(in_w, first[i]) for (in_w, _), i in zip(again, order.tolist(), strict=True))
    others = [in_w for in_w, _ in drawn(replace(batch, seeds=batch.seeds + 1))]
    assert sum(torch.equal(a, b) for a, b in zip(first, others, strict=True)) < 3


def test_every_token_is_drawn_equally_often() -> None:
    pairs, long, short = 2000, 6, 2
    batch = random_pairs(0, chosen=[long] * pairs, rejected=[short] * pairs)
    counts = torch.stack([in_w for in_w, _ in drawn(replace(batch, seeds=torch.arange(pairs)))]).double().mean(0)
    # Five standard deviations of a share of 1/3 in 2000 draws.
    assert (counts - short / long).abs().max() < 5 * math.sqrt(short / long * (1 - short / long) / pairs)


def test_equal_lengths_are_dpo() -> None:
    batch = random_pairs(3, chosen=[3, 1, 5], rejected=[3, 1, 5])
    assert_same(load_preset("sampo")(batch).per_pair, load_preset("dpo")(batch).per_pair, batch)


# ------------------------------------------------------------------------------------- Mallows-φ


def g(s: Tensor, phi: Tensor) -> Tensor:
    size = s.abs()
    wins = (size + 1) / (1 - phi ** (size + 1)) - size / (1 - phi**size)
    return wins if s > 0 else 1 - wins


def mallows_phi(x: Pair, beta: float) -> Tensor:
    return -torch.log(g(beta * x.d, torch.exp(-x.of("dispersion"))))


def test_mallows_phi_is_the_formula_where_it_is_not_smoothed() -> None:
    outside = 0
    for seed in range(3):
        batch = random_pairs(seed, spread=2.0)
        for beta, smoothing in ((0.8, 0.02), (1.5, 0.05)):
            assert all(abs(beta * x.d.item()) > smoothing for x in pairs_of(batch))
            expected = torch.stack([mallows_phi(x, beta) for x in pairs_of(batch)])
            ours = load_preset("mallows_phi", beta=beta, smoothing=smoothing)(batch).per_pair
            assert_same(ours, expected, batch, rtol=1e-8, atol=1e-9)
            outside += len(expected)
    assert outside == 36


def pair_at(s: list[float], dispersion: float) -> PairBatch:
    """Pairs of one token each whose β D is ``s`` at β = 1."""
    batch = random_pairs(0, chosen=[1] * len(s), rejected=[1] * len(s))
    sides = []
    for side, shift in ((batch.chosen, torch.tensor(s, dtype=torch.float64)), (batch.rejected, torch.zeros(len(s)))):
        assert side is not None and side.reference is not None
        sides.append(replace(side, policy=(side.reference + shift[:, None]).requires_grad_()))
    return replace(
        batch,
        chosen=sides[0],
        rejected=sides[1],
        dispersion=torch.full((len(s),), dispersion, dtype=torch.float64),
    )


@pytest.mark.parametrize("dispersion", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("smoothing", [0.5, 1.0])
def test_mallows_phi_is_smooth_symmetric_and_falling(dispersion: float, smoothing: float) -> None:
    loss = load_preset("mallows_phi", beta=1.0, smoothing=smoothing)
    step = 1e-6
    border = pair_at([smoothing - step, smoothing + step, -smoothing - step, -smoothing + step], dispersion)
    slopes = torch.autograd.grad(loss(border).per_pair.sum(), border.chosen.policy)[0][border.chosen.mask]
    torch.testing.assert_close(slopes[::2], slopes[1::2], rtol=1e-4, atol=0)
    grid = torch.linspace(-2.5 * smoothing, 2.5 * smoothing, 1001, dtype=torch.float64)
    batch = pair_at(grid.tolist(), dispersion)
    value = loss(batch).per_pair.detach()
    ours = torch.exp(-value)
    torch.testing.assert_close(ours + ours.flip(0), torch.ones_like(ours))
    assert ours[500].item() == pytest.approx(0.5, abs=1e-12)
    assert (value.diff() < 0).all()
    # A jump would stand out among the differences.
    assert value.diff().abs().max() < 5 * value.diff().abs().median()


def test_the_paper_s_link_jumps_at_0() -> None:
    """Why it is smoothed: g(0+) = 1/(1 − φ) + 1/ln φ, which is not ½."""
    for dispersion, limit in ((-math.log(0.5), 0.557), (-math.log(0.1), 0.677)):
        phi = torch.tensor(math.exp(-dispersion), dtype=torch.float64)
        assert g(torch.tensor(1e-9, dtype=torch.float64), phi).item() == pytest.approx(limit, abs=1e-3)
        at = pair_at([0.0021], dispersion)
        ours = torch.exp(-load_preset("mallows_phi", beta=1.0, smoothing=0.002)(at).per_pair)
        assert ours.item() == pytest.approx(limit, abs=2e-3)


def test_mallows_phi_smooths_where_the_scaled_difference_is_below_1() -> None:
    s = [-1.4, -1.1, 1.1, 1.4]
    batch = pair_at([value / 0.1 for value in s], 0.7)
    expected = torch.stack([mallows_phi(x, 0.1) for x in pairs_of(batch)])
    assert_same(load_preset("mallows_phi")(batch).per_pair, expected, batch, rtol=1e-8, atol=1e-9)
    inside = pair_at([9.5], 0.7)
    smoothed = load_preset("mallows_phi")(inside).per_pair - mallows_phi(pairs_of(inside)[0], 0.1)
    assert smoothed.abs().item() > 1e-5


def test_mallows_phi_at_the_reference_is_ln_2() -> None:
    batch = random_pairs(4, at_reference=True)
    value = load_preset("mallows_phi")(batch).per_pair
    torch.testing.assert_close(value, torch.full((6,), math.log(2), dtype=torch.float64))
