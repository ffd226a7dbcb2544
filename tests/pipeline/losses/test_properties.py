"""What holds for every preset, over random batches."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import GroupBatch, Loss, PairBatch, Side, UnpairedBatch, load_preset, preset_names
from tests.support.loss_batches import leaves, random_groups, random_pairs, random_unpaired, value_and_gradient

PRESETS = [load_preset(name) for name in preset_names()]
PAIRED = [loss for loss in PRESETS if loss.composition.head is None]
LISTS = [loss for loss in PRESETS if loss.composition.head is not None]
UNPAIRED = [loss for loss in PRESETS if loss.composition.unpaired]
by_name = pytest.mark.parametrize("loss", PRESETS, ids=lambda loss: loss.name)
PAIR_FIELDS = {field.name for field in dataclasses.fields(PairBatch)} - {"chosen", "rejected", "seeds"}
SIDE_FIELDS = {field.name for field in dataclasses.fields(Side)} - {"policy", "mask"}

lengths = st.lists(st.integers(1, 7), min_size=2, max_size=5)


@st.composite
def pair_batches(draw: st.DrawFn, references: int = 2, at_reference: bool = False) -> PairBatch:
    chosen = draw(lengths)
    rejected = draw(st.lists(st.integers(1, 7), min_size=len(chosen), max_size=len(chosen)))
    return random_pairs(draw(st.integers(0, 2**16)), chosen, rejected, references, at_reference)


def statistics(loss: Loss, batch: PairBatch | UnpairedBatch) -> dict[str, float]:
    return loss.summarise(loss.observe(batch), {})[0]


def rows(batch: PairBatch, index: torch.Tensor) -> PairBatch:
    def of(value: object) -> object:
        if isinstance(value, Side):
            return Side(**{f.name: of(getattr(value, f.name)) for f in dataclasses.fields(Side)})
        if isinstance(value, torch.Tensor):
            return value[:, index] if value.ndim == 3 else value[index]
        return value

    return PairBatch(**{f.name: of(getattr(batch, f.name)) for f in dataclasses.fields(PairBatch)})


@given(st.sampled_from(PRESETS), pair_batches(), st.randoms())
@settings(max_examples=250, deadline=None)
def test_pairs_do_not_see_each_other_given_the_statistics(loss: Loss, batch: PairBatch, random: object) -> None:
    known = statistics(loss, batch)
    whole = loss(batch, known).per_pair
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(rows(batch, order), known).per_pair, whole[order], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(loss(rows(batch, order[:1]), known).per_pair, whole[order[:1]], rtol=1e-12, atol=1e-13)


@given(st.sampled_from(PRESETS), pair_batches())
@settings(max_examples=250, deadline=None)
def test_padding_changes_nothing(loss: Loss, batch: PairBatch) -> None:
    def padded(value: torch.Tensor | None) -> torch.Tensor | None:
        if value is None:
            return None
        filler = 0 if value.dtype == torch.bool else math.nan
        return torch.nn.functional.pad(value, (0, 3), value=filler)

    def widened(side: Side) -> Side:
        return Side(**{f.name: padded(getattr(side, f.name)) for f in dataclasses.fields(Side)})

    wide = dataclasses.replace(
        batch,
        chosen=widened(batch.chosen),
        rejected=widened(batch.rejected),
        calibration=widened(batch.calibration),
    )
    torch.testing.assert_close(loss(wide).per_pair, loss(batch).per_pair, rtol=1e-12, atol=1e-13)


@given(st.sampled_from(PRESETS), pair_batches(at_reference=True))
@settings(max_examples=250, deadline=None)
def test_finite_where_policy_and_reference_are_one(loss: Loss, batch: PairBatch) -> None:
    value, gradient = value_and_gradient(loss(batch).per_pair, batch)
    assert value.isfinite().all()
    for name, slope in gradient.items():
        assert slope.isfinite().all(), name


# HPO raises whatever has a good reward, the supervised loss reads one side, and DiscoPOP's slope is positive between
# its stationary points, among which 0 is.
@given(st.sampled_from([p for p in PRESETS if p.name not in ("hpo", "sft", "discopop")]), st.integers(0, 2**16))
@settings(max_examples=250, deadline=None)
def test_descent_raises_chosen_over_rejected_at_the_reference(loss: Loss, seed: int) -> None:
    batch = random_pairs(seed, references=2, at_reference=True)
    assert batch.reward_chosen is not None and batch.win_probability is not None
    assert batch.rejected is not None
    # A sensible labeller: what it prefers has the better reward and wins more often. RRHF ranks by likelihood.
    batch = dataclasses.replace(
        batch,
        chosen=dataclasses.replace(batch.chosen, advantage=torch.ones_like(batch.chosen.policy)),
        rejected=dataclasses.replace(batch.rejected, advantage=-torch.ones_like(batch.rejected.policy)),
        reward_rejected=batch.reward_chosen - 1.5,
        win_probability=batch.win_probability.clamp(min=0.6),
        win_probability_rejected=1 - batch.win_probability.clamp(min=0.6),
    )
    _, slopes = value_and_gradient(loss(batch).per_pair, batch)
    chosen, rejected = (slopes[f"{side}.policy"].nansum() for side in ("chosen", "rejected"))
    assert chosen < rejected


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_extreme_log_ratios_do_not_overflow(loss: Loss, dtype: torch.dtype, shift: float) -> None:
    batch = random_pairs(0, references=2)
    assert batch.rejected is not None

    def moved(side: Side, by: float) -> Side:
        # A log-probability is at most 0, so a log-ratio of 1e4 is an improbable reference.
        policy, reference = side.policy.detach() + min(by, 0), side.reference
        assert reference is not None
        cast = {f.name: getattr(side, f.name) for f in dataclasses.fields(Side)}
        floats = {k: v.detach().to(dtype) for k, v in cast.items() if v is not None and v.is_floating_point()}
        floats |= {"policy": policy.to(dtype).requires_grad_(), "reference": (reference - max(by, 0)).to(dtype)}
        return Side(**{**cast, **floats})

    far = dataclasses.replace(
        batch,
        chosen=moved(batch.chosen, shift),
        rejected=moved(batch.rejected, -shift),
        calibration=moved(batch.calibration, shift),
    )
    value, gradient = value_and_gradient(loss(far).per_pair, far)
    assert value.dtype == dtype and value.isfinite().all()
    for name in ("chosen.policy", "rejected.policy"):
        if name in gradient:
            assert gradient[name].isfinite().all(), name


@by_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    batch = random_pairs(0, references=2)

    def halved(value: object) -> object:
        if isinstance(value, Side):
            return Side(**{f.name: halved(getattr(value, f.name)) for f in dataclasses.fields(Side)})
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if floating else value

    half = PairBatch(**{f.name: halved(getattr(batch, f.name)) for f in dataclasses.fields(PairBatch)})
    as_float = random_pairs(0, references=2)
    value = loss(half).per_pair
    assert value.dtype == torch.float32
    # float16 and bfloat16 keep three and two digits of what went in.
    torch.testing.assert_close(value.double(), loss(as_float).per_pair.detach(), rtol=0.1, atol=0.2)


@by_name
def test_what_needs_names_is_all_that_is_read(loss: Loss) -> None:
    batch = random_pairs(0, references=2)
    expected = loss(batch).per_pair

    def stripped(side: Side | None, keep: frozenset[str]) -> Side | None:
        return None if side is None else dataclasses.replace(side, **dict.fromkeys(SIDE_FIELDS - keep))

    # A calibration response is measured against the reference too, if the loss has one.
    pair = dict.fromkeys(PAIR_FIELDS - loss.needs.fields - {"win_probability_rejected"})
    fields = loss.needs.fields
    bare = dataclasses.replace(
        batch,
        chosen=stripped(batch.chosen, fields),
        rejected=stripped(batch.rejected, fields) if "rejected" in fields or loss in LISTS else None,
        **{**pair, **({"calibration": stripped(batch.calibration, fields)} if "calibration" in fields else {})},
    )
    if loss.composition.head is not None and "reward_chosen" not in loss.needs:
        assert bare.reward_chosen is None
        assert loss(bare).per_pair.isfinite().all()
        return
    torch.testing.assert_close(loss(bare).per_pair, expected, rtol=0, atol=0)


@by_name
def test_a_missing_need_is_refused_by_name(loss: Loss) -> None:
    batch = random_pairs(0, references=2)
    needs = loss.needs.fields - {"responses"}
    if loss.composition.head is not None and loss.composition.head.kind == "cross_entropy":
        # Without rewards the chosen response is the better one for sure: a run refuses that, since it is DPO.
        needs -= {"reward_chosen", "reward_rejected"}
    for need in needs:
        if need in SIDE_FIELDS:
            assert batch.rejected is not None
            lacking = dataclasses.replace(batch, rejected=dataclasses.replace(batch.rejected, **{need: None}))
            if need == "reference" and not loss.composition.links and loss.composition.head is None:
                continue
        else:
            lacking = dataclasses.replace(batch, **{need: None})
        if need == "dispersion":
            lacking = dataclasses.replace(lacking, chosen=dataclasses.replace(batch.chosen, ref_entropy=None))
        with pytest.raises(ValueError, match=r"needs"):
            loss(lacking)


@by_name
def test_only_the_policy_and_what_heads_learn_get_a_gradient(loss: Loss) -> None:
    batch = random_pairs(0, references=2)
    for side in (batch.chosen, batch.rejected):
        assert side is not None and side.reference is not None
        side.reference.requires_grad_()
    assert batch.reward_chosen is not None
    batch.reward_chosen.requires_grad_()
    parts = leaves(batch)
    gradients = torch.autograd.grad(loss(batch).per_pair.sum(), tuple(parts.values()), allow_unused=True)
    reached = {
        name for name, g in zip(parts, gradients, strict=True) if g is not None and g.nan_to_num().abs().sum() > 0
    }
    assert "chosen.policy" in reached
    assert not {name for name in reached if name.endswith((".reference", "reward_chosen", ".collision"))}


@by_name
def test_a_response_without_tokens_is_refused(loss: Loss) -> None:
    batch = random_pairs(0, references=2)
    mask = batch.chosen.mask.clone()
    mask[2] = False
    with pytest.raises(ValueError, match="no response tokens in row 2"):
        loss(dataclasses.replace(batch, chosen=dataclasses.replace(batch.chosen, mask=mask)))


@pytest.mark.parametrize("loss", LISTS, ids=lambda loss: loss.name)
def test_absent_responses_of_a_group_change_nothing(loss: Loss) -> None:
    batch = random_groups(3, responses=3)
    blank = batch.responses[0]
    empty = dataclasses.replace(blank, mask=torch.zeros_like(blank.mask))
    rewards = torch.cat([batch.rewards, torch.full_like(batch.rewards[:, :1], 99.0)], dim=1)
    present = torch.ones_like(rewards, dtype=torch.bool)
    present[:, -1] = False
    wider = GroupBatch(responses=(*batch.responses, empty), rewards=rewards, present=present)
    torch.testing.assert_close(loss(wider).per_pair, loss(batch).per_pair, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("loss", UNPAIRED, ids=lambda loss: loss.name)
def test_marked_responses_move_the_way_of_their_mark(loss: Loss) -> None:
    batch = random_unpaired(1, at_reference=True)
    _, slopes = value_and_gradient(loss(batch).per_pair, batch)
    slope = slopes["responses.policy"].nansum(1)
    assert (slope[batch.desirable] < 0).all() and (slope[~batch.desirable] > 0).all()


def test_every_kind_of_preset_was_met() -> None:
    assert len(PAIRED) > 45 and len(LISTS) >= 5 and {"kto", "bco"} <= {loss.name for loss in UNPAIRED}
