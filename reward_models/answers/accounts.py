"""Accounts of a labelling stage: where labels came from, and what they cost. Torch-free.

Costs are written to the run folder call by call, so a kill never resets a budget.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue

from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger, Spent

_EXAMPLES = 3


@dataclass(frozen=True)
class Tally:
    """Counts for one part of a stage."""

    counts: Counter[str]
    missing: Counter[str]
    unparsed: list[str]

    def plain(self) -> dict[str, JsonValue]:
        """Return it as plain JSON."""
        return {"counts": {**self.counts}, "missing": {**self.missing}, "unparsed": [*self.unparsed]}

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """Read one from a JSON file."""
        plain = json.loads(file.read_text(encoding="utf-8"))
        return cls(Counter(plain["counts"]), Counter(plain["missing"]), list(plain["unparsed"]))


@dataclass
class Accounts:
    """What a labeller needs besides its settings: the cache, the ledger, and a callback for progress.

    ``counts``: questions, cached, answered, compared (pairs asked in both orders), contradicted (compared pairs whose
    orders name different winners), truncated. ``missing``: questions without a label, by cause. ``unparsed``: the first
    few answers without a verdict. ``facts``: facts from local models, for a manifest.
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
        """Return calls, tokens and money spent in this stage, including before a kill."""
        return self.ledger.spent(lambda call: call.stage == self.stage)

    def note(self) -> str:
        """Sum up the accounts for a progress line."""
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
        """Return the counts since the last call."""
        taken = Tally(self.counts - self._taken.counts, self.missing - self._taken.missing, [*self.unparsed])
        self._taken = Tally(Counter(self.counts), Counter(self.missing), [])
        self.unparsed.clear()
        return taken


def label_summary(tallies: Iterable[Tally], accounts: Accounts) -> dict[str, JsonValue]:
    """Sum up a stage's labels for its manifest: questions, cache, missing by cause, calls, tokens and cost."""
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
        found["unparsed_examples"] = [*unparsed[:_EXAMPLES]]
    for fact in accounts.facts:
        found |= fact()
    return found
