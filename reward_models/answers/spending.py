"""Costs of paid labellers, call by call. Torch-free."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

# The outcome of a call that is not finished, or was cut off by a kill.
UNDER_WAY = "under_way"


class Call(BaseModel):
    """One request to a paid labeller, as a line of the ledger; ``cost`` is in the currency of the config's prices.

    A call under way has the highest possible cost; a later line with the same ``id`` replaces it.
    """

    id: str = ""
    stage: str
    labeller: str
    outcome: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass
class Spent:
    """A sum over calls."""

    calls: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Ledger:
    """All calls of a run, two JSON lines each: one before the call, one with its outcome."""

    def __init__(self, file: Path | None) -> None:
        """Without a file, the ledger is only in memory."""
        self._file = file
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self._under_way: dict[str, Call] = {}
        # True if the file ends in the middle of a line, which the next line must not continue.
        self._torn = False
        if file is not None and file.exists():
            content = file.read_bytes()
            self._torn = content != b"" and not content.endswith(b"\n")
            for line in content.split(b"\n"):
                try:
                    self._count(Call.model_validate_json(line))
                except ValidationError:
                    # A kill of the machine may tear the last line.
                    continue

    def _count(self, call: Call) -> None:
        if call.outcome == UNDER_WAY:
            self._under_way[call.id] = call
        else:
            self._under_way.pop(call.id, None)
            self.calls.append(call)

    def spent(self, counts: Callable[[Call], bool]) -> Spent:
        """Sum up the calls for which ``counts`` is true."""
        total = Spent()
        with self._lock:
            for call in filter(counts, [*self.calls, *self._under_way.values()]):
                total.calls += 1
                total.failed_calls += call.outcome != "ok"
                total.prompt_tokens += call.prompt_tokens
                total.completion_tokens += call.completion_tokens
                total.cost += call.cost
        return total

    def add(self, call: Call) -> None:
        """Write ``call`` to the ledger; thread-safe."""
        line = call.model_dump_json() + "\n"
        with self._lock:
            self._count(call)
            if self._file is None:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            written = ("\n" * self._torn + line).encode()
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                # One write, so that lines of two processes cannot mix.
                self._torn = os.write(descriptor, written) < len(written)
            finally:
                os.close(descriptor)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
