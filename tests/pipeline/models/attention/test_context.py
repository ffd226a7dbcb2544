"""Each of several processes attends for its own tokens, over all keys, as one process does for all."""

import random

import pytest
import torch
from torch import Tensor

from pipeline.models.attention.blocks import seen_tokens
from pipeline.models.attention.context import ContextGroup, OwnTokens, own_part, rows_as_stream
from pipeline.models.attention.flex import attend_flexibly, block_mask
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.reach import WHOLE_ROW, Reach
from pipeline.models.attention.scores import attend_by_scores
from pipeline.models.attention.spans import attend_in_spans, own_parts, parts
from tests.support.tiny_training import random_ids

REACHES = (WHOLE_ROW, Reach("window", 5), Reach("chunk", 6))


def stream(multiple: int) -> Packed:
    draw = random.Random(0)
    prompts = [random_ids(draw, 3, 20) for _ in range(3)]
    return pack([(prompt, random_ids(draw, 1, 15)) for prompt in prompts for _ in range(3)]).rounded(multiple)


def tensors(packed: Packed) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = (4, 2, 2)
    return [torch.randn(1, heads, len(packed.ids), 16, requires_grad=True) for heads in sizes]


def owners(packed: Packed, size: int) -> list[OwnTokens]:
    return [ContextGroup(None, index, size).own(len(packed.ids)) for index in range(size)]


@pytest.mark.parametrize("reach", REACHES, ids=lambda reach: reach.kind)
@pytest.mark.parametrize("size", [2, 3])
def test_own_queries_get_the_values_and_gradients_of_the_whole(reach: Reach, size: int) -> None:
    packed = stream(2 * size)
    query, key, value = tensors(packed)
    every = parts(packed, reach)
    whole = attend_in_spans(query, key, value, every, None)
    upstream = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, (query, key, value), upstream)
    sums = [torch.zeros_like(part) for part in (query, key, value)]
    seen: list[int] = []
    for own in owners(packed, size):
        index = own.index(query.device)
        seen += index.tolist()
        mine = attend_in_spans(query[:, :, index], key, value, own_parts(every, own.ranges), None)
        torch.testing.assert_close(mine, whole[:, index], rtol=0, atol=1e-6)
        for total, part in zip(sums, torch.autograd.grad(mine, (query, key, value), upstream[:, index]), strict=True):
            total += part
        masked = attend_by_scores(query[:, :, index], key, value, seen_tokens(packed, index, reach), None)
        torch.testing.assert_close(masked.transpose(1, 2), whole[:, index], rtol=0, atol=1e-6)
    assert sorted(seen) == list(range(len(packed.ids)))
    for total, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, wanted, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", REACHES, ids=lambda reach: reach.kind)
def test_own_blocks_are_those_of_the_whole_mask(reach: Reach) -> None:
    packed = stream(4 * 128)
    query, key, value = (part.detach() for part in tensors(packed))
    whole = attend_flexibly(query, key, value, block_mask(packed, reach), None)
    for own in owners(packed, 2):
        index = own.index(query.device)
        mine = attend_flexibly(query[:, :, index], key, value, block_mask(packed, reach, own), None)
        torch.testing.assert_close(mine, whole[:, index], rtol=0, atol=1e-6)


def test_each_asked_token_has_one_process() -> None:
    packed = stream(1)
    places = [own_part(ContextGroup(None, index, 3), packed, 8) for index in range(3)]
    assert all(len(part.stream.ids) % 48 == 0 and part.tokens.count * 3 == len(part.stream.ids) for part in places)
    assert sorted(i for part in places for i in part.here.tolist()) == list(range(len(packed.predictors)))
    for part in places:
        index = part.tokens.index(packed.ids.device)
        assert torch.equal(index[part.wanted[: len(part.here)]], packed.predictors[part.here])
        assert len(part.wanted) % 8 == 0


def test_padded_rows_as_a_stream() -> None:
    read, asked = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[False, True, True], [True, False, False]])
    laid = rows_as_stream(read, asked)
    assert laid.ids.tolist() == [5, 6, 7, 8, 9, 0]
    assert laid.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert (laid.predictors.tolist(), laid.lengths.tolist(), laid.ends.tolist()) == ([1, 2, 3], [3, 3], [2, 5])
