"""The books of a labelling stage: where labels came from, and what they cost. Torch-free.

Costs are written down call by call in the run folder, so that no kill makes a budget start anew.
"""

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from reward_models.answers.cache import LabelCache

EXAMPLES = 3


# The outcome of a call that has none yet, or was cut off by a kill.
UNDER_WAY = "under_way"


class Call(BaseModel):
    """One request to a paid labeller, as a line of the ledger; ``cost`` in the currency of the config's prices.

    A later line of the same ``id`` takes the place of one that was under way, whose cost is the most that it may be.
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
    """All calls of a run, two JSON lines each: before it is made, and what became of it."""

    def __init__(self, file: Path | None) -> None:
        """Without a file the ledger is in memory alone."""
        self._file = file
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self._under_way: dict[str, Call] = {}
        # Whether the file ends within a line, which the next one must not continue.
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
        """The sum over the calls that ``counts`` takes."""
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
        """Write ``call`` down; safe from any thread."""
        line = call.model_dump_json() + "\n"
        with self._lock:
            self._count(call)
            if self._file is None:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            written = ("\n" * self._torn + line).encode()
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # One write: lines of two processes cannot mix.
                self._torn = os.write(descriptor, written) < len(written)
            finally:
                os.close(descriptor)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))


@dataclass(frozen=True)
class Tally:
    """Counts of one part of a stage."""

    counts: Counter[str]
    missing: Counter[str]
    unparsed: list[str]

    def plain(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {"counts": {**self.counts}, "missing": {**self.missing}, "unparsed": [*self.unparsed]}

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """One that was written as JSON."""
        plain = json.loads(file.read_text(encoding="utf-8"))
        return cls(Counter(plain["counts"]), Counter(plain["missing"]), list(plain["unparsed"]))


@dataclass
class Accounts:
    """What a labeller needs beside its settings: the cache, the ledger, and whom to tell that something moved.

    ``counts``: questions, cached, answered, compared (pairs asked in both orders), contradicted (of those, pairs whose
    orders name different winners), truncated. ``missing``: questions without a label, by cause. ``unparsed``: the first
    few answers that were no verdict. ``facts``: what local models say of their work, for a manifest.
    """

    cache: LabelCache
    ledger: Ledger
    stage: str = ""
    changed: Callable[[], None] = lambda: None
    counts: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    unparsed: list[str] = field(default_factory=list)
    facts: list[Callable[[], dict[str, JsonValue]]] = field(default_factory=list)
    _taken: Tally = field(default_factory=lambda: Tally(Counter(), Counter(), []))

    def __enter__(self) -> "Accounts":
        return self

    def __exit__(self, *error: object) -> None:
        self.cache.close()

    def spent(self) -> Spent:
        """Calls, tokens and money of this stage, kills included."""
        return self.ledger.spent(lambda call: call.stage == self.stage)

    def note(self) -> str:
        """The books in a few words, for a progress line."""
        parts = []
        if self.counts["questions"]:
            parts.append(f"{self.counts['cached'] / self.counts['questions']:.0%} from the cache")
        spent = self.spent()
        if spent.calls:
            parts.append(f"{spent.calls} calls, {spent.prompt_tokens + spent.completion_tokens} tokens")
            parts.append(f"cost {spent.cost:.4g}")
        if self.missing:
            parts.append("missing: " + ", ".join(f"{cause} {count}" for cause, count in sorted(self.missing.items())))
        return ", ".join(parts)

    def take(self) -> Tally:
        """What was counted since the last call."""
        taken = Tally(self.counts - self._taken.counts, self.missing - self._taken.missing, [*self.unparsed])
        self._taken = Tally(Counter(self.counts), Counter(self.missing), [])
        self.unparsed.clear()
        return taken


def summary(tallies: Iterable[Tally], accounts: Accounts) -> dict[str, JsonValue]:
    """What a manifest says of a stage's labels: questions, cache, missing by cause, calls, tokens and cost."""
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    unparsed: list[str] = []
    for tally in tallies:
        counts.update(tally.counts)
        missing.update(tally.missing)
        unparsed += tally.unparsed
    found: dict[str, JsonValue] = {}
    if counts["questions"]:
        found |= {"questions": counts["questions"], "cache_hit_rate": counts["cached"] / counts["questions"]}
        found |= {"missing_by_cause": dict(sorted(missing.items())), **asdict(accounts.spent())}
    if counts["compared"]:
        found["orders_that_disagree"] = counts["contradicted"] / counts["compared"]
    if counts["truncated"]:
        found["truncated_texts"] = counts["truncated"]
    if unparsed:
        found["unparsed_examples"] = [*unparsed[:EXAMPLES]]
    for fact in accounts.facts:
        found |= fact()
    return found
