"""Order of examples, micro-batches and their tensors."""

import random
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.losses import GroupBatch, PairBatch, UnpairedBatch, load_preset
from pipeline.models.token_logps import TokenFacts
from pipeline.training.batches.collate import collate, plan_epoch
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.types import derive_seed
from tests.support.tiny_training import dpo, random_groups, random_pairs, random_texts, random_unpaired

LENGTHS = random.Random(0).choices(range(10, 91), k=205)
PAIR = Example(
    "a",
    (5, 6),
    "pair",
    (Continuation((7,), ((-0.1,),)), Continuation((8, 9, 10), ((-0.2, -0.3, -0.4),))),
    soft_label=0.75,
)
OTHER = Example("b", (4,), "pair", (Continuation((7, 7), ((-1.0, -2.0),)), Continuation((3,), ((-3.0,),))))


def rows(count: int, width: int) -> TokenFacts:
    return TokenFacts(torch.arange(float(count * width)).view(count, width))


def pair_batch(*examples: Example, **settings: object) -> PairBatch:
    batch = collate(examples, **settings)  # type: ignore[arg-type]
    made = batch.loss_batch(rows(*batch.ids.shape))
    assert isinstance(made, PairBatch)
    return made


def first_column(values: Tensor) -> list[float]:
    return values[:, 0].tolist()


def test_an_epoch_holds_every_example_once() -> None:
    plan = plan_epoch(LENGTHS, LENGTHS, 8, seed=1, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(205))
    assert sorted(map(len, plan)) == [5] + [8] * 25


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert plan_epoch(LENGTHS, LENGTHS, 8, 1, 0) == plan_epoch(LENGTHS, LENGTHS, 8, 1, 0)
    assert plan_epoch(LENGTHS, LENGTHS, 8, 1, 0) != plan_epoch(LENGTHS, LENGTHS, 8, 1, 1)
    assert plan_epoch(LENGTHS, LENGTHS, 8, 1, 0) != plan_epoch(LENGTHS, LENGTHS, 8, 2, 0)


def test_batches_are_drawn_whatever_the_lengths_and_the_longest_example_comes_first() -> None:
    plan = plan_epoch(LENGTHS, LENGTHS, 8, 1, 0)
    means = [sum(LENGTHS[i] for i in batch) / len(batch) for batch in plan if len(batch) == 8]
    # Lengths are uniform on 81 values: the mean of eight draws deviates by 8.3, that of eight neighbours by 23.
    assert 5 < statistics.pstdev(means) < 12
    assert max(LENGTHS) in [LENGTHS[i] for i in plan[0]]


def test_the_largest_packed_example_comes_first_and_the_longest_row_next() -> None:
    lengths, tokens = [5] * 12, [8] * 12
    lengths[3], tokens[9] = 30, 40
    for seed in range(4):
        first, second, *_ = plan_epoch(lengths, tokens, 1, seed, 0)
        assert ([*first], [*second]) == ([9], [3])


def test_collate_puts_chosen_rows_first_and_pads_at_the_right() -> None:
    batch = collate([PAIR, OTHER])
    assert batch.ids.tolist() == [[5, 6, 7, 0, 0], [4, 7, 7, 0, 0], [5, 6, 8, 9, 10], [4, 3, 0, 0, 0]]
    assert batch.mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.references is not None
    torch.testing.assert_close(
        batch.references,
        torch.tensor([[[0, 0, -0.1, 0, 0], [0, -1, -2, 0, 0], [0, 0, -0.2, -0.3, -0.4], [0, -3, 0, 0, 0]]]),
    )
    assert batch.soft_label.tolist() == [0.75, 1.0]


def test_rows_of_pairs_are_cut_into_sides() -> None:
    batch = collate([PAIR, OTHER])
    pairs = batch.loss_batch(rows(4, 5))
    assert isinstance(pairs, PairBatch)
    assert pairs.rejected is not None
    assert first_column(pairs.chosen.policy) == [0, 5]
    assert first_column(pairs.rejected.policy) == [10, 15]
    assert pairs.rejected.mask.tolist() == batch.mask[2:].tolist()
    assert pairs.rejected.reference[0, 0].tolist() == pytest.approx([0, 0, -0.2, -0.3, -0.4])
    assert pairs.soft_label.tolist() == [0.75, 1]


def test_rows_that_only_fill_up_are_left_out_of_the_loss() -> None:
    batch = collate([PAIR], rows=3)
    assert batch.ids.shape == (6, 5)
    pairs = batch.loss_batch(rows(6, 5))
    assert isinstance(pairs, PairBatch)
    assert pairs.rejected is not None
    assert first_column(pairs.chosen.policy) == [0]
    assert first_column(pairs.rejected.policy) == [15]


def test_single_texts_have_one_side_and_no_reference() -> None:
    batch = collate(random_texts(3))
    assert batch.references is None
    assert batch.loss_batch(TokenFacts(torch.zeros(batch.ids.shape))).rejected is None


def test_each_fact_goes_to_the_rows_that_it_is_of() -> None:
    batch = collate([PAIR, OTHER])
    names = ("policy", "kl", "collision", "weights", "kl_weights", "prior")
    facts = TokenFacts(**{name: torch.arange(20.0).view(4, 5) + 100 * i for i, name in enumerate(names)})
    pairs = batch.loss_batch(facts)
    assert isinstance(pairs, PairBatch)
    for i, name in enumerate(names):
        assert first_column(getattr(pairs.rejected, name)) == [100 * i + 10, 100 * i + 15]


def test_what_examples_bring_reaches_the_loss() -> None:
    chosen = Continuation((7,), ((-0.1,), (-0.5,)), weights=(0.5,), prior=-2.0, reward=1.0, win_probability=0.75)
    rejected = Continuation((8, 9), ((-0.2, -0.3), (-1.0, -2.0)), weights=(2.0, 3.0), prior=-4.0, reward=0.25)
    pairs = pair_batch(Example("a", (5,), "pair", (chosen, rejected), dispersion=1.5))
    assert pairs.rejected is not None
    assert pairs.rejected.reference[1].tolist() == [[0, -1, -2]]
    assert pairs.chosen.weights.tolist() == [[0, 0.5, 0]]
    assert pairs.rejected.weights.tolist() == [[0, 2, 3]]
    assert pairs.rejected.prior.tolist() == [[0, -2, -2]]
    assert (pairs.reward_chosen.tolist(), pairs.reward_rejected.tolist()) == ([1], [0.25])
    assert (pairs.win_probability.tolist(), pairs.win_probability_rejected.tolist()) == ([0.75], [0.25])
    assert pairs.dispersion.tolist() == [1.5]


def test_a_win_probability_of_its_own_is_kept_for_the_rejected_response() -> None:
    sides = (Continuation((7,), win_probability=0.75), Continuation((8,), win_probability=0.5))
    assert pair_batch(Example("a", (5,), "pair", sides)).win_probability_rejected.tolist() == [0.5]


def test_what_heads_learn_stands_in_place_of_the_examples_own_values() -> None:
    example = Example("a", (5,), "pair", (Continuation((7,), weights=(0.5,), prior=-2.0), Continuation((8,))))
    batch = collate([example])
    facts = replace(rows(2, 2), weights=torch.full((2, 2), 9.0), prior=torch.full((2, 2), 4.0))
    pairs = batch.loss_batch(facts)
    assert isinstance(pairs, PairBatch)
    assert pairs.chosen.weights.tolist() == [[9, 9]]
    assert pairs.chosen.prior.tolist() == [[4, 4]]


def test_lots_are_of_seed_example_and_epoch_and_not_of_the_batch() -> None:
    alone, together = (pair_batch(*examples, seed=3, epoch=1) for examples in ([OTHER], [PAIR, OTHER]))
    assert together.seeds.tolist() == [derive_seed(3, "a", 1), derive_seed(3, "b", 1)]
    assert alone.seeds.tolist() == together.seeds.tolist()[1:]
    later = pair_batch(OTHER, seed=3, epoch=2).seeds
    assert later.dtype == torch.int64
    assert len({*alone.seeds.tolist(), *later.tolist(), *pair_batch(OTHER, seed=4, epoch=1).seeds.tolist()}) == 3


def test_edited_tokens_are_marked_where_the_loss_reads_them() -> None:
    example = Example.pair("a", (5, 6), (7, 8, 9), (7, 10, 9, 11))
    pairs = pair_batch(example, needs=load_preset("bmc").needs)
    assert pairs.rejected is not None
    assert pairs.chosen.edited.int().tolist() == [[0, 0, 0, 1, 0, 0]]
    assert pairs.rejected.edited.int().tolist() == [[0, 0, 0, 1, 0, 1]]
    assert pair_batch(example, needs=dpo().needs).chosen.edited is None


def test_a_calibration_response_has_rows_of_its_own_where_the_loss_reads_it() -> None:
    calibration = Continuation((8, 8), ((-5.0, -6.0),))
    examples = [replace(e, calibration=calibration) for e in (PAIR, OTHER)]
    batch = collate(examples, rows=3, needs=load_preset("vpo_online").needs)
    assert batch.ids.shape == (9, 5)
    pairs = batch.loss_batch(rows(9, 5))
    assert isinstance(pairs, PairBatch)
    assert first_column(pairs.calibration.policy) == [30, 35]
    assert pairs.calibration.mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    assert pairs.calibration.reference[0, 1].tolist() == [0, -5, -6, 0, 0]
    assert len(collate(examples, needs=dpo().needs).ids) == 4
    with pytest.raises(ValueError, match="lacks a calibration"):
        collate([PAIR, *examples], needs=load_preset("vpo_online").needs)


def test_unpaired_responses_come_with_mismatched_ones() -> None:
    examples = random_unpaired(3)
    batch = collate(examples, needs=load_preset("kto").needs)
    width = batch.ids.shape[1]
    made = batch.loss_batch(rows(6, width))
    assert isinstance(made, UnpairedBatch)
    assert made.desirable.tolist() == [True, False, True]
    assert made.mismatched.mask.sum(1).tolist() == [len(e.mismatched.ids) for e in examples]
    assert first_column(made.mismatched.policy) == [3 * width, 4 * width, 5 * width]
    assert collate(examples, needs=load_preset("bco").needs).blocks == 1


def test_groups_of_different_size_are_filled_up() -> None:
    groups = random_groups(2, sizes=(3, 2))
    batch = collate(groups, rows=3, responses=4)
    width = batch.ids.shape[1]
    assert len(batch.ids) == 12
    made = batch.loss_batch(rows(12, width))
    assert isinstance(made, GroupBatch)
    assert [first_column(side.policy) for side in made.responses] == [
        [3 * k * width, (3 * k + 1) * width] for k in range(4)
    ]
    assert made.present.tolist() == [[True, True, True, False], [True, True, False, False]]
    rewards = [[c.reward for c in e.responses] for e in groups]
    assert made.rewards.tolist() == [pytest.approx([*rewards[0], 0]), pytest.approx([*rewards[1], 0, 0])]
    assert all((side.mask.sum(1) > 0).all() for side in made.responses)


def test_a_batch_moves_with_all_that_is_in_it() -> None:
    moved = collate([PAIR, OTHER], needs=load_preset("bmc").needs).to(torch.device("meta"))
    tensors = (moved.ids, moved.mask, moved.references, moved.edited, moved.soft_label, moved.present, moved.seeds)
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.examples == (PAIR, OTHER)


@pytest.mark.parametrize(("count", "size", "world"), [(7, 2, 1), (7, 2, 3), (2, 4, 3), (8, 8, 2)])
def test_processes_share_a_batch_with_equal_work(count: int, size: int, world: int) -> None:
    examples = random_pairs(count)
    shares = [list(micro_batches(examples, Cut(size), rank, world)) for rank in range(world)]
    assert sorted(e.id for share in shares for batch in share for e in batch.examples) == sorted(e.id for e in examples)
    assert len({tuple(len(batch.ids) for batch in share) for share in shares}) == 1
    assert all(len(batch.ids) <= 2 * size for share in shares for batch in share)


def test_processes_share_groups_of_different_size_with_equal_work() -> None:
    groups = random_groups(5, sizes=(2, 4))
    shares = [list(micro_batches(groups, Cut(2), rank, 3)) for rank in range(3)]
    assert {tuple(len(batch.ids) for batch in share) for share in shares} == {(8,)}
    assert sorted(e.id for share in shares for batch in share for e in batch.examples) == sorted(e.id for e in groups)


def test_a_process_without_examples_still_has_rows() -> None:
    (batch,) = micro_batches(random_pairs(2), Cut(4), rank=2, world=3)
    assert batch.examples == ()
    assert len(batch.ids) == 2
    made = batch.loss_batch(TokenFacts(torch.zeros(batch.ids.shape)))
    assert isinstance(made, PairBatch)
    assert made.chosen.policy.shape[0] == 0


@pytest.mark.parametrize(
    ("preset", "facts"),
    [
        ("dpo", set()),
        ("tdpo1", {"kl"}),
        ("wpo", {"collision"}),
        ("sparsepo", {"kl", "reference_hidden"}),
        ("mapo", {"kl", "reference_hidden"}),
        ("tis_dpo", set()),
        ("hpo", {"hidden"}),
        ("ganpo", {"hidden", "reference_last_hidden"}),
    ],
)
def test_facts_are_those_that_the_loss_reads(preset: str, facts: set[str]) -> None:
    assert load_preset(preset).needs.token_facts == facts
