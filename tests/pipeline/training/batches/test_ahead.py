"""Tables of blocks are made in a thread for what earlier passes have asked for, and taken by the passes."""

import pytest
import torch

from pipeline.models.attention import block_table
from pipeline.models.attention.flex import block_mask
from pipeline.models.attention.packing import Packed
from pipeline.models.attention.reach import WHOLE_ROW, Reach
from pipeline.models.token_logps import TokenLogps
from pipeline.training.batches.ahead import Ahead
from pipeline.training.batches.micro_batches import Cut, micro_batches
from tests.support.tiny_training import random_pairs, tiny_llama

NEAR, FAR = Reach("window", 5), Reach("window", 10_000)


def test_a_pass_finds_the_tables_of_its_filled_stream_made(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [*micro_batches(random_pairs(12), Cut(4, packing=True))]
    facts = TokenLogps(tiny_llama(), share_prompts=True)
    facts.asked |= {WHOLE_ROW, NEAR, FAR}
    ahead = Ahead(facts, torch.device("cuda"))
    ahead.begin(batches)
    ahead._pool.shutdown()
    expected = {}
    for index, batch in enumerate(batches):
        assert isinstance(batch.packed, Packed)
        assert batch.packed.longest == int(batch.packed.positions.max()) + 1 < FAR.size
        for reach in (WHOLE_ROW, NEAR):
            fresh = Packed(**{n: getattr(batch.packed, n) for n in ("ids", "positions", "branch", "predictors")},
                           lengths=batch.packed.lengths, ends=batch.packed.ends)  # fmt: skip
            expected[index, reach] = block_mask(fresh.rounded(128), reach).to_dense()
    monkeypatch.setattr(block_table, "_occupied", lambda *_: pytest.fail("made in the pass"))
    for index, batch in enumerate(batches):
        assert isinstance(batch.packed, Packed)
        for reach in (WHOLE_ROW, NEAR):
            found = block_mask(batch.packed.to(torch.device("cpu")).rounded(128), reach)
            assert torch.equal(found.to_dense(), expected[index, reach])


def test_nothing_is_made_before_a_pass_has_asked() -> None:
    batches = [*micro_batches(random_pairs(4), Cut(4, packing=True))]
    ahead = Ahead(TokenLogps(tiny_llama(), share_prompts=True), torch.device("cpu"))
    ahead.begin(batches)
    ahead._pool.shutdown()
    packed = batches[0].packed
    assert isinstance(packed, Packed) and packed.outline is not None and not packed.outline._tables
