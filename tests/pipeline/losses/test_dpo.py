"""DPO against its published formula, in float64, with nothing of the component code in the expectation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.losses import LossOutput, PairBatch, Side, load_preset

BETA = 0.3
CHOSEN = (([-1.0, -2.5, -0.25], [-1.5, -2.0, -0.5]), ([-0.7], [-0.9]), ([-3.0, -1.0], [-0.1, -0.4]))
REJECTED = (
    ([-4.0], [-2.0]),
    ([-0.5, -0.6, -0.7, -0.8], [-0.4, -0.7, -0.5, -1.1]),
    ([-2.0, -2.0, -2.0], [-1.0, -3.0, -2.5]),
)
Rows = tuple[tuple[list[float], list[float]], ...]


def side(
    rows: Rows, start: int = 0, width: int = 6, filler: float = math.nan, dtype: torch.dtype = torch.float64
) -> Side:
    """The rows from column ``start`` on, everything else filled with ``filler``."""
    policy, reference = (torch.full((len(rows), width), filler, dtype=dtype) for _ in range(2))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (ours, theirs) in enumerate(rows):
        policy[row, start : start + len(ours)] = torch.tensor(ours, dtype=dtype)
        reference[row, start : start + len(ours)] = torch.tensor(theirs, dtype=dtype)
        mask[row, start : start + len(ours)] = True
    return Side(policy=policy.requires_grad_(), mask=mask, reference=reference)


def published(chosen: Rows, rejected: Rows) -> tuple[list[float], list[float]]:
    """−log σ(β [Σ_w (p − q) − Σ_l (p − q)]) of each pair, and its slope −β σ(−z) by each chosen log-probability."""
    losses, slopes = [], []
    for (pw, qw), (pl, ql) in zip(chosen, rejected, strict=True):
        z = BETA * ((sum(pw) - sum(qw)) - (sum(pl) - sum(ql)))
        losses.append(-math.log(1 / (1 + math.exp(-z))))
        slopes.append(-BETA / (1 + math.exp(z)))
    return losses, slopes


def gradient(output: LossOutput, of: Tensor) -> Tensor:
    return torch.autograd.grad(output.per_pair.sum(), of, retain_graph=True)[0]


def test_value_and_gradient_are_the_published_formula_on_ragged_lengths() -> None:
    chosen, rejected = side(CHOSEN, start=1), side(REJECTED, start=2)
    output = load_preset("dpo", beta=BETA)(PairBatch(chosen=chosen, rejected=rejected))
    losses, slopes = published(CHOSEN, REJECTED)
    assert output.per_pair.dtype == torch.float64
    assert output.per_pair.tolist() == pytest.approx(losses, rel=1e-14)
    for part, sign in ((chosen, 1), (rejected, -1)):
        expected = sign * torch.tensor(slopes, dtype=torch.float64)[:, None] * part.mask
        torch.testing.assert_close(gradient(output, part.policy), expected, rtol=1e-13, atol=0)


def test_policy_equal_to_reference_gives_ln_2_and_half_beta() -> None:
    same: Rows = tuple((ours, ours) for ours, _ in CHOSEN)
    chosen, rejected = side(same), side(tuple((ours, ours) for ours, _ in REJECTED))
    output = load_preset("dpo", beta=BETA)(PairBatch(chosen=chosen, rejected=rejected))
    assert output.per_pair.tolist() == pytest.approx([math.log(2)] * 3, rel=1e-15)
    assert gradient(output, chosen.policy)[chosen.mask].tolist() == pytest.approx([-BETA / 2] * 6, rel=1e-15)
    assert gradient(output, rejected.policy)[rejected.mask].tolist() == pytest.approx([BETA / 2] * 8, rel=1e-15)
    assert float(output.metrics["margin"]) == 0


def test_default_beta_is_a_tenth() -> None:
    assert load_preset("dpo").composition.beta == 0.1


def test_no_gradient_reaches_the_reference() -> None:
    chosen = side(CHOSEN)
    reference = torch.zeros_like(chosen.policy, requires_grad=True)
    batch = PairBatch(chosen=Side(policy=chosen.policy, mask=chosen.mask, reference=reference), rejected=side(REJECTED))
    load_preset("dpo")(batch).per_pair.sum().backward()
    assert reference.grad is None


def test_soft_label_mixes_both_orders() -> None:
    batch = PairBatch(chosen=side(CHOSEN), rejected=side(REJECTED), soft_label=torch.tensor([1.0, 0.9, 0.5]))
    swapped = published(REJECTED, CHOSEN)[0]
    expected = [
        p * a + (1 - p) * b for p, a, b in zip([1.0, 0.9, 0.5], published(CHOSEN, REJECTED)[0], swapped, strict=True)
    ]
    assert load_preset("dpo", beta=BETA)(batch).per_pair.tolist() == pytest.approx(expected, rel=1e-7)


def test_nll_is_added_per_token_of_the_chosen_response() -> None:
    batch = PairBatch(chosen=side(CHOSEN), rejected=side(REJECTED))
    expected = [a - 0.5 * sum(p) / len(p) for a, (p, _) in zip(published(CHOSEN, REJECTED)[0], CHOSEN, strict=True)]
    assert load_preset("dpo", beta=BETA, nll=0.5)(batch).per_pair.tolist() == pytest.approx(expected, rel=1e-14)


def test_margin_offset_and_token_mean() -> None:
    batch = PairBatch(chosen=side(CHOSEN), rejected=side(REJECTED))
    means = [
        (sum(pw) - sum(qw)) / len(pw) - (sum(pl) - sum(ql)) / len(pl)
        for (pw, qw), (pl, ql) in zip(CHOSEN, REJECTED, strict=True)
    ]
    expected = [math.log1p(math.exp(-(BETA * d - 0.2))) for d in means]
    output = load_preset("dpo", beta=BETA, aggregate="mean", margin=0.2)(batch)
    assert output.per_pair.tolist() == pytest.approx(expected, rel=1e-14)


def test_metrics_are_means_over_pairs() -> None:
    metrics = load_preset("dpo", beta=BETA)(PairBatch(chosen=side(CHOSEN), rejected=side(REJECTED))).metrics
    gaps_w, gaps_l = ([sum(p) - sum(q) for p, q in rows] for rows in (CHOSEN, REJECTED))
    margins = [BETA * (w - v) for w, v in zip(gaps_w, gaps_l, strict=True)]
    assert float(metrics["margin"]) == pytest.approx(sum(margins) / 3)
    assert float(metrics["accuracy"]) == pytest.approx(sum(m > 0 for m in margins) / 3)
    assert float(metrics["reward_chosen"]) == pytest.approx(BETA * sum(gaps_w) / 3)
    assert float(metrics["chosen_logp_per_token"]) == pytest.approx(sum(sum(p) / len(p) for p, _ in CHOSEN) / 3)
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())


@pytest.mark.parametrize("ratio", [1e4, -1e4])
def test_extreme_ratios_neither_overflow_nor_lose_their_gradient(ratio: float) -> None:
    chosen, rejected = side((([ratio], [0.0]),)), side((([-ratio], [0.0]),))
    output = load_preset("dpo", beta=1.0)(PairBatch(chosen=chosen, rejected=rejected))
    assert output.per_pair.item() == (0.0 if ratio > 0 else 2e4)
    assert gradient(output, chosen.policy)[0, 0].item() == (0.0 if ratio > 0 else -1.0)


def test_half_precision_input_is_computed_in_float32() -> None:
    halves = [side(rows, dtype=torch.bfloat16) for rows in (CHOSEN, REJECTED)]
    exact = [Side(policy=s.policy.float(), mask=s.mask, reference=s.reference.float()) for s in halves]  # type: ignore[union-attr]
    loss = load_preset("dpo", beta=BETA)
    ours = loss(PairBatch(chosen=halves[0], rejected=halves[1])).per_pair
    assert ours.dtype == torch.float32
    assert ours.tolist() == loss(PairBatch(chosen=exact[0], rejected=exact[1])).per_pair.tolist()


def test_a_response_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="rejected: no response tokens in row 1"):
        load_preset("dpo")(PairBatch(chosen=side(CHOSEN[:2]), rejected=side((REJECTED[0], ([], [])))))


def test_missing_parts_are_refused() -> None:
    chosen, rejected = side(CHOSEN), side(REJECTED)
    with pytest.raises(ValueError, match=r"PairBatch\.rejected"):
        load_preset("dpo")(PairBatch(chosen=chosen))
    bare = Side(policy=chosen.policy, mask=chosen.mask)
    with pytest.raises(ValueError, match=r"Side\.reference"):
        load_preset("dpo")(PairBatch(chosen=bare, rejected=rejected))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        Side(policy=torch.zeros(2, 3), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask: torch\.float32"):
        Side(policy=torch.zeros(2, 3), mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="3 chosen and 2 rejected"):
        PairBatch(chosen=side(CHOSEN), rejected=side(REJECTED[:2]))
    with pytest.raises(ValueError, match="soft_label"):
        PairBatch(chosen=side(CHOSEN), soft_label=torch.ones(2))


LOGPS = st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LOGPS, LOGPS), min_size=1, max_size=4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_padding_and_order_change_nothing_and_gradients_have_the_right_sign(pairs, pad, draw) -> None:  # type: ignore[no-untyped-def]
    rows = [tuple(([p for p, _ in tokens], [q for _, q in tokens]) for tokens in pair) for pair in pairs]
    chosen, rejected = tuple(w for w, _ in rows), tuple(v for _, v in rows)
    loss = load_preset("dpo")
    plain = loss(PairBatch(chosen=side(chosen), rejected=side(rejected))).per_pair
    order = list(range(len(rows)))
    draw.shuffle(order)
    moved = side(tuple(chosen[i] for i in order), start=pad, width=9, filler=7.0)
    others = side(tuple(rejected[i] for i in order), start=pad, width=9, filler=-7.0)
    output = loss(PairBatch(chosen=moved, rejected=others))
    torch.testing.assert_close(output.per_pair, plain[order], rtol=1e-12, atol=1e-12)
    assert (gradient(output, moved.policy)[moved.mask] <= 0).all()
    assert (gradient(output, others.policy)[others.mask] >= 0).all()
    assert (gradient(output, moved.policy)[~moved.mask] == 0).all()
