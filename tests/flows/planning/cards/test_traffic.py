"""Bytes of model files that a round writes and reads, for an 8B, by hand."""

from flows.planning.cards.recipes import RECIPES, PartCounts
from flows.planning.cards.traffic import RoundTraffic, round_traffic

# 8 billion parameters, 10 million of an adapter.
COUNTS = PartCounts(linear=6_000_000_000, head=1_000_000_000, rest=1_000_000_000, adapter=10_000_000)
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def traffic(name: str, *, item: int = 2, carried: bool = False, merged: bool = False) -> RoundTraffic:
    recipe = BY_NAME[name]
    return round_traffic(recipe, COUNTS, saved_item=item, carried=carried, checkpoints=0, references=1, merged=merged)


def test_full_float32_training_of_16_bit_files_writes_its_masters_whatever_is_carried() -> None:
    fresh, carried = traffic("full, float32"), traffic("full, float32", carried=True)
    assert fresh.written == {"policy": 16e9, "masters": 32e9}
    assert carried.written == {"policy": 16e9, "masters": 32e9, "optimiser": 64e9}
    # It goes on from the masters alone.
    assert fresh.read == {"sampler": 16e9, "references": 16e9, "trainer": 32e9, "evaluation": 48e9, "hashing": 48e9}
    assert carried.read["trainer"] == 96e9
    assert fresh.seconds(2e9) == {"written": 24.0, "read": 80.0}


def test_weights_that_are_stored_as_they_are_stepped_have_no_masters() -> None:
    assert traffic("full, float32", item=4).written == {"policy": 32e9}
    for item in (2, 4):
        assert traffic("full, bfloat16", item=item).written == {"policy": 16e9}


def test_an_adapter_is_written_alone_and_read_on_its_base() -> None:
    assert traffic("LoRA, 16 bits").written == {"policy": 40e6}
    assert traffic("LoRA, 16 bits").read["trainer"] == 16e9 + 40e6
    assert traffic("LoRA, 16 bits", merged=True).written == {"policy": 16e9}
