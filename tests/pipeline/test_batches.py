"""Order of examples, micro-batches and their tensors."""

import random

import pytest
import torch
from tiny_training import dpo, random_pairs, random_texts

from pipeline.batches import Example, check_examples, collate, micro_batches, plan_epoch
from pipeline.losses import load_preset
from pipeline.types import UserError

LENGTHS = random.Random(0).choices(range(10, 91), k=205)
PAIR = Example("a", (5, 6), (7,), (8, 9, 10), (-0.1,), (-0.2, -0.3, -0.4), soft_label=0.75)
OTHER = Example("b", (4,), (7, 7), (3,), (-1.0, -2.0), (-3.0,))


def test_an_epoch_holds_every_example_once() -> None:
    plan = plan_epoch(LENGTHS, 8, seed=1, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(205))
    assert sorted(map(len, plan)) == [5] + [8] * 25


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert plan_epoch(LENGTHS, 8, 1, 0) == plan_epoch(LENGTHS, 8, 1, 0)
    assert plan_epoch(LENGTHS, 8, 1, 0) != plan_epoch(LENGTHS, 8, 1, 1)
    assert plan_epoch(LENGTHS, 8, 1, 0) != plan_epoch(LENGTHS, 8, 2, 0)


def test_batches_hold_examples_of_similar_length_in_random_order() -> None:
    plan = plan_epoch(LENGTHS, 8, 1, 0)
    padding = sum(len(b) * max(LENGTHS[i] for i in b) - sum(LENGTHS[i] for i in b) for b in plan)
    assert padding < 0.1 * sum(LENGTHS)
    longest = [max(LENGTHS[i] for i in batch) for batch in plan]
    assert longest != sorted(longest)


def test_collate_puts_chosen_rows_first_and_pads_at_the_right() -> None:
    batch = collate([PAIR, OTHER])
    assert batch.ids.tolist() == [[5, 6, 7, 0, 0], [4, 7, 7, 0, 0], [5, 6, 8, 9, 10], [4, 3, 0, 0, 0]]
    assert batch.mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.reference is not None
    torch.testing.assert_close(
        batch.reference,
        torch.tensor([[0, 0, -0.1, 0, 0], [0, -1, -2, 0, 0], [0, 0, -0.2, -0.3, -0.4], [0, -3, 0, 0, 0]]),
    )
    assert batch.soft_label.tolist() == [0.75, 1.0]


def test_pair_batch_cuts_the_rows_into_sides() -> None:
    batch = collate([PAIR, OTHER])
    pairs = batch.pair_batch(torch.arange(20.0).view(4, 5))
    assert pairs.rejected is not None
    assert pairs.chosen.policy[:, 0].tolist() == [0, 5]
    assert pairs.rejected.policy[:, 0].tolist() == [10, 15]
    assert pairs.rejected.mask.tolist() == batch.mask[2:].tolist()


def test_rows_that_only_fill_up_are_left_out_of_the_loss() -> None:
    batch = collate([PAIR], rows=3)
    assert batch.ids.shape == (6, 5)
    pairs = batch.pair_batch(torch.arange(30.0).view(6, 5))
    assert pairs.rejected is not None
    assert pairs.chosen.policy[:, 0].tolist() == [0]
    assert pairs.rejected.policy[:, 0].tolist() == [15]


def test_single_texts_have_one_side_and_no_reference() -> None:
    batch = collate(random_texts(3))
    assert batch.reference is None
    assert batch.pair_batch(torch.zeros(batch.ids.shape)).rejected is None


@pytest.mark.parametrize(("count", "size", "world"), [(7, 2, 1), (7, 2, 3), (2, 4, 3), (8, 8, 2)])
def test_processes_share_a_batch_with_equal_work(count: int, size: int, world: int) -> None:
    examples = random_pairs(count)
    shares = [list(micro_batches(examples, size, rank, world)) for rank in range(world)]
    assert sorted(e.id for share in shares for batch in share for e in batch.examples) == sorted(e.id for e in examples)
    assert len({tuple(len(batch.ids) for batch in share) for share in shares}) == 1
    assert all(len(batch.ids) <= 2 * size for share in shares for batch in share)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        ([PAIR, Example("t", (1,), (2,))], "pairs and single texts"),
        ([Example("t", (1,), (2,))], "example t: loss dpo needs a rejected response"),
        ([Example("e", (1,), (), (2,), (), (-1.0,))], "example e: a response without tokens"),
        ([Example("e", (1,), (2,), (), (-1.0,), ())], "example e: a response without tokens"),
        ([Example("p", (), (2,), (3,), (-1.0,), (-1.0,))], "example p: no prompt tokens"),
        ([Example("r", (1,), (2,), (3,))], "example r: loss dpo needs one reference log-probability"),
        (
            [Example("r", (1,), (2,), (3, 4), (-1.0,), (-1.0,))],
            "example r: loss dpo needs one reference log-probability",
        ),
    ],
)
def test_examples_that_the_loss_cannot_take_are_refused(examples: list[Example], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_examples(examples, dpo())


def test_texts_suit_supervised_training() -> None:
    check_examples(random_texts(2), load_preset("sft"))
