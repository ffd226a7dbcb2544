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

    @classmethod
    def of(cls, call: Call) -> "Spent":
        """A single call."""
        return cls(1, int(call.outcome != "ok"), call.prompt_tokens, call.completion_tokens, call.cost)

    def add(self, other: "Spent") -> None:
        """Add ``other`` to this sum."""
        self.calls += other.calls
        self.failed_calls += other.failed_calls
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost


class Ledger:
    """All calls of a run, two JSON lines each: one before the call, one with its outcome."""

    def __init__(self, file: Path | None) -> None:
        """Without a file, the ledger is only in memory."""
        self._file = file
        self._lock = threading.Lock()
        self.finished = 0
        # By stage, labeller and outcome: millions of calls take no memory, and no time when they are summed up.
        self._sums: dict[tuple[str, str, str], Spent] = {}
        self._under_way: dict[str, Call] = {}
        # True if the file ends in the middle of a line, which the next line must not continue.
        self._torn = False
        if file is not None and file.exists():
            with file.open("rb") as lines:
                for line in lines:
                    self._torn = not line.endswith(b"\n")
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
            self._sums.setdefault((call.stage, call.labeller, call.outcome), Spent()).add(Spent.of(call))
            self.finished += 1

    def spent(self, counts: Callable[[Call], bool]) -> Spent:
        """Sum up the calls for which ``counts`` is true; it is asked about a stage, a labeller and an outcome."""
        total = Spent()
        with self._lock:
            for (stage, labeller, outcome), spent in self._sums.items():
                if counts(Call(stage=stage, labeller=labeller, outcome=outcome)):
                    total.add(spent)
            for call in filter(counts, self._under_way.values()):
                total.add(Spent.of(call))
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
