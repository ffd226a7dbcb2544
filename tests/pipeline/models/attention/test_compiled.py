"""FlexAttention is compiled for streams of any length at once. The compiler's front end decides that, on any device."""

import random

import pytest
import torch

from pipeline.models.attention.flex import attend_flexibly, block_mask, capped, compiled_attention, graphs_compiled
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.reach import WHOLE_ROW, Reach


def stream(trees: int, draw: random.Random) -> Packed:
    def ids(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100) for _ in range(draw.randint(shortest, longest)))

    prompts = [ids(40, 90) for _ in range(trees)]
    return pack([(prompt, ids(20, 60)) for prompt in prompts for _ in range(2)]).rounded(128)


def attended(packed: Packed, reach: Reach = WHOLE_ROW) -> None:
    count = len(packed.ids)
    query, key = torch.randn(1, 4, count, 16), torch.randn(1, 2, count, 16)
    with torch.no_grad():
        compiled_attention("eager")(query, key, key, None, block_mask(packed, reach), None, True)


def test_streams_of_all_lengths_share_one_compilation() -> None:
    torch._dynamo.reset()
    draw = random.Random(0)
    streams = [stream(trees, draw) for trees in (2, 5, 3, 7, 4, 9)]
    assert len({len(one.ids) for one in streams}) >= 5
    before = graphs_compiled()
    for one in streams:
        attended(one)
    assert graphs_compiled() - before == 1
    # Layers with a window are compiled once more, whatever their streams.
    for one in streams:
        attended(one, Reach("window", 50))
    assert graphs_compiled() - before == 2


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
# Of torch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_capped_scores_are_compiled_to_the_end() -> None:
    """By the compiler of this machine's CPU, which takes the rule as CUDA's does."""
    torch._dynamo.reset()
    packed = stream(3, random.Random(1))
    query, key = torch.randn(1, 4, len(packed.ids), 16), torch.randn(1, 2, len(packed.ids), 16)
    mask, rule = block_mask(packed), capped(0.5, query.device)
    with torch.no_grad():
        found = compiled_attention()(query, key, key, rule, mask, None, True)
        expected = attend_flexibly(query, key, key, mask, None, cap=0.5).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
