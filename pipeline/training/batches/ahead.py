"""What passes on an accelerator need from the host, made in a thread while earlier passes run."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from pipeline.models.attention.packing import Packed
from pipeline.models.attention.shared_prompts import prepare_stream
from pipeline.models.token_logps import TokenLogps
from pipeline.training.batches.collate import TokenBatch


class Ahead:
    """Makes tables of blocks; a pass that comes first makes its own, and one that comes meanwhile waits for it."""

    def __init__(self, facts: TokenLogps, device: torch.device) -> None:
        """``facts``: whose earlier passes tell what is needed; on a CPU, nothing is. ``device``: of the passes."""
        self._facts, self._device = facts, device.type
        self._pool = ThreadPoolExecutor(1, "tables-of-blocks")

    @classmethod
    def of(cls, facts: nn.Module, device: torch.device) -> "Ahead | None":
        """Return one for ``facts``, None if these are no log-probabilities."""
        return cls(facts, device) if isinstance(facts, TokenLogps) else None

    def begin(self, batches: Sequence[TokenBatch]) -> None:
        """Begin with ``batches``, in their order; return at once."""
        if not self._facts.asked:
            return
        for batch in batches:
            if isinstance(batch.packed, Packed):
                self._pool.submit(prepare_stream, batch.packed, self._device, self._facts.dtype, self._facts.asked)
