"""Bytes of model files that a round writes and reads, and the seconds that takes. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.planning.cards.recipes import PartCounts, Recipe

# SHA-256 of one thread, and the threads that hash shards side by side.
HASH_BYTES_A_SECOND, HASH_THREADS = 1.4e9, 8


@dataclass(frozen=True, slots=True)
class RoundTraffic:
    """Bytes of one round by what they are for."""

    written: Mapping[str, int]
    read: Mapping[str, int]

    def seconds(self, rate: float) -> dict[str, float]:
        """Seconds of writing and reading at ``rate`` bytes a second of the disk."""
        return {"written": sum(self.written.values()) / rate, "read": sum(self.read.values()) / rate}


def round_traffic(
    recipe: Recipe,
    counts: PartCounts,
    *,
    saved_item: int,
    carried: bool,
    checkpoints: int,
    references: int,
    merged: bool = False,
) -> RoundTraffic:
    """Traffic of one round of sampling, scoring, training and evaluation.

    Args:
        recipe: how weights are held and stepped.
        counts: of the policy.
        saved_item: bytes of a weight in the files of the start policy; weights stepped in 16 bits are stored so.
        carried: whether optimiser state goes on from round to round.
        checkpoints: written within a round, the last step's included.
        references: models that score the examples before training, one after the other.
        merged: whether an adapter is merged into the whole policy that is saved.
    """
    alone = recipe.adapter and not merged
    item = saved_item if recipe.adapter else min(saved_item, recipe.step_item)
    base = counts.base * item
    policy = counts.adapter * 4 if alone else base
    state = recipe.optimiser_bytes(counts)
    # The float32 weights that 16-bit files are rounded from: the next round trains on from these alone.
    masters = 0 if recipe.adapter or item == recipe.step_item else counts.base * recipe.step_item
    stepped = recipe.trained(counts) * recipe.step_item + state
    written = {
        "policy": policy,
        "masters": masters,
        "optimiser": state if carried else 0,
        "checkpoints": checkpoints * stepped,
    }
    loaded = base + (policy if alone else 0)
    read = {
        "sampler": loaded,
        "references": references * loaded,
        "trainer": (masters or loaded) + (state if carried else 0),
        # This policy, the start and the one before it.
        "evaluation": 3 * loaded,
        # What was written is hashed once; a child that starts later reads the digest.
        "hashing": sum(written.values()),
    }
    return RoundTraffic({n: b for n, b in written.items() if b}, {n: b for n, b in read.items() if b})
