"""A policy that is not trained, for passes without gradient: reference, KL, held-out pairs.

If the run trains in several processes, all of them load it and share the passes; this one has the results.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from flows.stages.context import Context
from pipeline.models.weights.weight_format import Precision, WeightFormat
from pipeline.training.auxiliary.heads import ValueHead
from pipeline.training.batches.examples import Example, Logps
from pipeline.training.distributed.launch import Placement
from pipeline.training.distributed.passes import FrozenModel, OnProgress, Sequences, load_shared
from pipeline.training.reference import (
    ReferenceValues,
    reference_logps,
    reference_values,
    response_logps,
    token_values,
)


class FrozenPolicy:
    """A context manager; loads nothing before its first pass."""

    def __init__(
        self, context: Context, path: str | Path, held: WeightFormat | None = None, dtype: Precision | None = None
    ) -> None:
        """``held``, ``dtype``: of a model that is not the run's own."""
        self._context = context
        self._wanted = FrozenModel(str(path), context.held if held is None else held, context.trusts(path))
        self._dtype: Precision = context.precision if dtype is None else dtype
        self._open = ExitStack()
        self._model: Any | None = None
        self._among: Placement | None = None

    def __enter__(self) -> "FrozenPolicy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model = None
        self._open.__exit__(kind, error, trace)

    def logps(self, sequences: Sequences, on_progress: OnProgress | None = None) -> list[Logps]:
        """See ``response_logps``."""
        return response_logps(self._loaded(), sequences, self._size, self._dtype, on_progress, self._among)

    def values(
        self, examples: Sequence[Example], on_progress: OnProgress | None = None, *, entropy: bool = False
    ) -> list[ReferenceValues]:
        """See ``reference_values``."""
        given = self._loaded(), examples, self._size, self._dtype, on_progress, self._among
        return reference_values(*given, entropy=entropy)

    def pair_logps(self, examples: Sequence[Example], on_progress: OnProgress | None = None) -> list[tuple[Logps, ...]]:
        """See ``reference_logps``."""
        return reference_logps(self._loaded(), examples, self._size, self._dtype, on_progress, self._among)

    def token_values(
        self, examples: Sequence[Example], head: ValueHead, on_progress: OnProgress | None = None
    ) -> list[tuple[Logps, ...]]:
        """See ``token_values``."""
        return token_values(self._loaded(), examples, head, self._size, self._dtype, on_progress, self._among)

    @property
    def _size(self) -> int:
        return self._context.config.training.micro_batch_size

    def _loaded(self) -> Any:
        if self._model is None:
            together = self._context.together
            self._among = None if together is None else self._open.enter_context(together())
            self._model = load_shared(self._wanted, self._among)
        return self._model
