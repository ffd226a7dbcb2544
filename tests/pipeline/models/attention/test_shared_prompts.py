"""Attention over packed streams, whatever form a device wants it in, is that of each row alone."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipeline.models.attention.blocks import attend_in_blocks, layout
from pipeline.models.attention.flex import BLOCK, attend_flexibly, block_mask
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.spans import attend_in_spans, parts
from tests.support.tiny_training import random_ids

SIZE, HEADS = 8, 4
Form = Callable[[Tensor, Tensor, Tensor, Packed], Tensor]


def in_spans(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    return attend_in_spans(query, key, value, parts(packed), None)


def in_blocks(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    return attend_in_blocks(query, key, value, layout(packed), None, 0.0)


def flexibly(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    return attend_flexibly(query, key, value, block_mask(packed), None)


def stream(seed: int, longest: int, multiple: int = 1) -> Packed:
    """Trees of one to five continuations; the last has a prompt alone."""
    draw = random.Random(seed)
    rows = [
        (prompt, random_ids(draw, 1, longest))
        for prompt in (random_ids(draw, 1, longest) for _ in range(5))
        for _ in range(draw.randint(1, 5))
    ]
    return pack([*rows, (random_ids(draw, 3, 3), ())]).rounded(multiple)


def visible(packed: Packed) -> Tensor:
    """[N, N] bool, written out token by token from the definition."""
    count = len(packed.ids)
    found = torch.zeros(count, count, dtype=torch.bool)
    tree = torch.tensor([index for index, length in enumerate(packed.lengths.tolist()) for _ in range(length)])
    for query in range(count):
        until = slice(0, query + 1)
        branches = (packed.branch[until] == 0) | (packed.branch[until] == packed.branch[query])
        found[query, until] = (tree[until] == tree[query]) & branches
    return found


def operands(count: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value, and an upstream gradient, as a model's projections lay them out."""
    lots = torch.Generator().manual_seed(3)
    made = [torch.randn(1, count, h, SIZE, generator=lots, dtype=dtype) for h in (HEADS, keys, keys, HEADS)]
    return [*(part.transpose(1, 2).requires_grad_() for part in made[:3]), made[3]]


def plainly(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """With one mask over the whole stream."""
    mask = visible(packed)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def results(form: Form, packed: Packed, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of query, key and value."""
    *three, upstream = operands(len(packed.ids), keys, dtype)
    found = form(*three, packed)
    return [found.detach(), *torch.autograd.grad(found, three, upstream)]


@pytest.mark.parametrize("keys", [HEADS, 2, 1])
@pytest.mark.parametrize("form", [in_spans, in_blocks])
def test_outputs_and_gradients_are_those_under_the_whole_mask(form: Form, keys: int) -> None:
    for seed in range(4):
        packed = stream(seed, 30)
        expected = results(plainly, packed, keys, torch.float64)
        for ours, theirs in zip(results(form, packed, keys, torch.float64), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_halves_are_worked_on_in_float32() -> None:
    packed = stream(0, 30)
    rounded = [part.bfloat16() for part in operands(len(packed.ids), 2, torch.float32)[:3]]
    exact = in_spans(*(part.float() for part in rounded), packed)
    assert in_spans(*rounded, packed).dtype == torch.bfloat16
    torch.testing.assert_close(in_spans(*rounded, packed), exact.bfloat16(), rtol=0, atol=0)


def test_each_pair_of_tokens_that_see_each_other_is_computed_once() -> None:
    for seed in range(4):
        packed = stream(seed, 12, multiple=16)
        seen = torch.zeros_like(visible(packed), dtype=torch.int64)
        for part in parts(packed):
            block = torch.ones_like(seen[part.queries, part.keys])
            seen[part.queries, part.keys] += block.tril() if part.causal else block
        torch.testing.assert_close(seen, visible(packed).long())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("keys", [HEADS, 2])
def test_flexible_attention_gives_the_outputs_under_the_whole_mask(keys: int) -> None:
    # Its backward pass exists on CUDA alone.
    for seed, multiple in ((0, 1), (1, BLOCK)):
        packed = stream(seed, 90, multiple)
        assert len(packed.ids) > 3 * BLOCK
        query, key, value, _ = (part.detach() for part in operands(len(packed.ids), keys, torch.float32))
        expected = plainly(query, key, value, packed)
        torch.testing.assert_close(flexibly(query, key, value, packed), expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_kernels_visit_hold_all_that_is_visible_and_few_others() -> None:
    draw = random.Random(0)
    long = random_ids(draw, 300, 300)
    rows = [(long, random_ids(draw, 290, 290)), (long, random_ids(draw, 270, 270))]
    for packed in (pack([*rows, ((1, 2), (3, 4))]), stream(1, 60)):
        mask, whole = block_mask(packed), visible(packed)
        count = len(packed.ids)
        places = torch.arange(count)
        masked = mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
        torch.testing.assert_close(masked, whole)
        blocks = -(-count // BLOCK)
        padded = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
        padded[:count, :count] = whole
        tiles = padded.unflatten(0, (blocks, BLOCK)).unflatten(2, (blocks, BLOCK)).transpose(1, 2).flatten(2)
        visited = mask.to_dense()[0, 0].bool()
        torch.testing.assert_close(visited, tiles.any(-1))
        for row in range(blocks):
            full = mask.full_kv_indices[0, 0, row, : int(mask.full_kv_num_blocks[0, 0, row])].tolist()
            assert all(tiles[row, column].all() for column in full)
    # Of the 10 there, those that lie within one part.
    assert int(block_mask(pack(rows)).full_kv_num_blocks.sum()) == 8


def test_filling_up_changes_nothing_that_is_asked_for() -> None:
    packed, filled = stream(2, 30), stream(2, 30, 64)
    assert len(filled.ids) % 64 == 0 and len(filled.ids) > len(packed.ids)
    assert packed.rounded(len(packed.ids)) is packed
    *three, _ = operands(len(filled.ids), 2, torch.float64)
    cut = [part[:, :, : len(packed.ids)] for part in three]
    torch.testing.assert_close(in_spans(*three, filled)[:, : len(packed.ids)], in_spans(*cut, packed))
