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
from pipeline.models.attention.reach import WHOLE_ROW, Reach
from pipeline.models.attention.scores import attend_by_scores
from pipeline.models.attention.spans import attend_in_spans, parts
from tests.support.tiny_training import random_ids

SIZE, HEADS = 8, 4
Form = Callable[..., Tensor]
REACHES = [
    WHOLE_ROW,
    Reach("window", 1),
    Reach("window", 6),
    Reach("window", 70),
    Reach("chunk", 6),
    Reach("chunk", 70),
]


def in_spans(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, reach: Reach = WHOLE_ROW, sinks: Tensor | None = None
) -> Tensor:
    return attend_in_spans(query, key, value, parts(packed, reach), None, sinks)


def in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    reach: Reach = WHOLE_ROW,
    sinks: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    return attend_in_blocks(query, key, value, layout(packed, reach), None, 0.0, cap, sinks)


def flexibly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    reach: Reach = WHOLE_ROW,
    sinks: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    return attend_flexibly(query, key, value, block_mask(packed, reach), None, cap, sinks)


def stream(seed: int, longest: int, multiple: int = 1) -> Packed:
    """Trees of one to five continuations; the last has a prompt alone."""
    draw = random.Random(seed)
    rows = [
        (prompt, random_ids(draw, 1, longest))
        for prompt in (random_ids(draw, 1, longest) for _ in range(5))
        for _ in range(draw.randint(1, 5))
    ]
    return pack([*rows, (random_ids(draw, 3, 3), ())]).rounded(multiple)


def visible(packed: Packed, reach: Reach = WHOLE_ROW) -> Tensor:
    """[N, N] bool, written out token by token from the definition."""
    count = len(packed.ids)
    found = torch.zeros(count, count, dtype=torch.bool)
    tree = torch.tensor([index for index, length in enumerate(packed.lengths.tolist()) for _ in range(length)])
    for query in range(count):
        until = slice(0, query + 1)
        branches = (packed.branch[until] == 0) | (packed.branch[until] == packed.branch[query])
        found[query, until] = (tree[until] == tree[query]) & branches
        ours, theirs = packed.positions[query], packed.positions[until]
        if reach.kind == "window":
            found[query, until] &= ours - theirs < reach.size
        if reach.kind == "chunk":
            found[query, until] &= ours // reach.size == theirs // reach.size
    return found


def operands(count: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value, and an upstream gradient, as a model's projections lay them out."""
    lots = torch.Generator().manual_seed(3)
    made = [torch.randn(1, count, h, SIZE, generator=lots, dtype=dtype) for h in (HEADS, keys, keys, HEADS)]
    return [*(part.transpose(1, 2).requires_grad_() for part in made[:3]), made[3]]


def plainly(query: Tensor, key: Tensor, value: Tensor, packed: Packed, reach: Reach = WHOLE_ROW) -> Tensor:
    """With one mask over the whole stream."""
    mask = visible(packed, reach)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    reach: Reach = WHOLE_ROW,
    sinks: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    mask = visible(packed, reach)[None, None]
    return attend_by_scores(query, key, value, mask, None, 0.0, cap, sinks).transpose(1, 2)


def results(form: Form, packed: Packed, keys: int, dtype: torch.dtype, reach: Reach = WHOLE_ROW) -> list[Tensor]:
    """Output, and gradients of query, key and value."""
    *three, upstream = operands(len(packed.ids), keys, dtype)
    found = form(*three, packed, reach)
    return [found.detach(), *torch.autograd.grad(found, three, upstream)]


@pytest.mark.parametrize("keys", [HEADS, 2, 1])
@pytest.mark.parametrize("form", [in_spans, in_blocks])
def test_outputs_and_gradients_are_those_under_the_whole_mask(form: Form, keys: int) -> None:
    for seed in range(4):
        packed = stream(seed, 30)
        expected = results(plainly, packed, keys, torch.float64)
        for ours, theirs in zip(results(form, packed, keys, torch.float64), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("form", [in_spans, in_blocks])
def test_windows_and_chunks_are_those_of_positions_in_a_row(form: Form, reach: Reach) -> None:
    for seed, keys in ((0, 2), (1, HEADS)):
        packed = stream(seed, 90)
        assert int(packed.positions.max()) > 75
        expected = results(plainly, packed, keys, torch.float64, reach)
        for ours, theirs in zip(results(form, packed, keys, torch.float64, reach), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_queries_of_a_long_row_are_taken_in_tiles_that_see_little_more_than_their_window() -> None:
    packed = pack([((1,) * 3000, (2,) * 1000)])
    found = parts(packed, Reach("window", 100))
    asked = [part.queries.stop - part.queries.start for part in found]
    known = [part.keys.stop - part.keys.start for part in found]
    assert sum(asked) == 4000 and max(asked) == 100
    assert max(known) == 199
    # Tiles of one shape share their mask.
    assert len({id(part.mask) for part in found}) == 2


@pytest.mark.parametrize("reach", [WHOLE_ROW, Reach("window", 6), Reach("chunk", 70)], ids=str)
@pytest.mark.parametrize("form", [in_spans, in_blocks])
def test_sinks_take_their_share_and_get_their_gradient(form: Form, reach: Reach) -> None:
    packed = stream(2, 60)
    sinks = torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    found = []
    for one in (form, by_scores):
        *three, upstream = operands(len(packed.ids), 2, torch.float64)
        made = one(*three, packed, reach, sinks)
        found.append([made.detach(), *torch.autograd.grad(made, [*three, sinks], upstream)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    without = results(form, packed, 2, torch.float64, reach)[0]
    assert float((found[0][0] - without).abs().max()) > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", [WHOLE_ROW, Reach("window", 70), Reach("chunk", 6)], ids=str)
def test_flexible_attention_has_windows_chunks_caps_and_sinks(reach: Reach) -> None:
    packed = stream(1, 90, BLOCK)
    query, key, value, _ = (part.detach() for part in operands(len(packed.ids), 2, torch.float32))
    sinks = torch.tensor([-1.0, 0.0, 0.5, 3.0])
    for extra in ({}, {"cap": 0.7}, {"sinks": sinks}, {"cap": 0.7, "sinks": sinks}):
        expected = by_scores(query, key, value, packed, reach, **extra)
        found = flexibly(query, key, value, packed, reach, **extra)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_scores_written_out_are_those_of_pytorch_and_of_the_definitions() -> None:
    packed = stream(0, 20)
    query, key, value, _ = (part.detach() for part in operands(len(packed.ids), 2, torch.float64))
    torch.testing.assert_close(by_scores(query, key, value, packed), plainly(query, key, value, packed))
    causal = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attend_by_scores(query, key, value, None, 0.3), causal)
    # Of the last token and the first head: scores by hand.
    scores = (2.0 * torch.tanh(query[0, 0, -1] @ key[0, 0].T * 0.3 / 2.0)).exp()
    expected = (scores @ value[0, 0]) / (scores.sum() + torch.tensor(0.4, dtype=torch.float64).exp())
    sinks = torch.full((HEADS,), 0.4, dtype=torch.float64)
    found = attend_by_scores(query, key, value, None, 0.3, cap=2.0, sinks=sinks)
    torch.testing.assert_close(found[0, 0, -1], expected)


def test_halves_are_worked_on_in_float32() -> None:
    packed = stream(0, 30)
    rounded = [part.bfloat16() for part in operands(len(packed.ids), 2, torch.float32)[:3]]
    exact = in_spans(*(part.float() for part in rounded), packed)
    assert in_spans(*rounded, packed).dtype == torch.bfloat16
    torch.testing.assert_close(in_spans(*rounded, packed), exact.bfloat16(), rtol=0, atol=0)


def test_each_pair_of_tokens_that_see_each_other_is_computed_once() -> None:
    for seed, reach in enumerate(REACHES):
        # The tree that fills a stream up has no positions, and nobody reads it.
        packed = stream(seed, 12 if reach.size < 70 else 90, multiple=16 if reach == WHOLE_ROW else 1)
        seen = torch.zeros_like(visible(packed), dtype=torch.int64)
        for part in parts(packed, reach):
            block = torch.ones_like(seen[part.queries, part.keys])
            if part.mask is not None:
                block = (part.mask == 0).long()
                assert block.any(1).all()
            seen[part.queries, part.keys] += block.tril() if part.causal else block
        torch.testing.assert_close(seen, visible(packed, reach).long())


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


@pytest.mark.parametrize("reach", [WHOLE_ROW, Reach("window", 1), Reach("window", 150), Reach("chunk", 200)], ids=str)
def test_blocks_that_kernels_visit_hold_all_that_is_visible_and_few_others(reach: Reach) -> None:
    draw = random.Random(0)
    long = random_ids(draw, 300, 300)
    rows = [(long, random_ids(draw, 290, 290)), (long, random_ids(draw, 270, 270))]
    for packed in (pack([*rows, ((1, 2), (3, 4))]), stream(1, 60)):
        mask, whole = block_mask(packed, reach), visible(packed, reach)
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
            assert full == tiles[row].all(-1).nonzero().flatten().tolist()
    assert int(block_mask(pack(rows)).full_kv_num_blocks.sum()) == 10


def test_filling_up_changes_nothing_that_is_asked_for() -> None:
    packed, filled = stream(2, 30), stream(2, 30, 64)
    assert len(filled.ids) % 64 == 0 and len(filled.ids) > len(packed.ids)
    assert packed.rounded(len(packed.ids)) is packed
    *three, _ = operands(len(filled.ids), 2, torch.float64)
    cut = [part[:, :, : len(packed.ids)] for part in three]
    torch.testing.assert_close(in_spans(*three, filled)[:, : len(packed.ids)], in_spans(*cut, packed))
