"""Accounts of a labelling stage: where labels came from, and what they cost. Torch-free.

Costs are written to the run folder call by call, so a kill never resets a budget.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue

from pipeline.types.counts import number_of
from reward_models.answers.cache import LabelCache
from reward_models.answers.parts import OpenPool
from reward_models.answers.spending import Ledger, Spent

_EXAMPLES = 3


def _unwatched() -> None:
    """Tell nobody that something changed."""


@dataclass(frozen=True)
class Tally:
    """Counts for one part of a stage; ``said``: what servers said, by the cause that a label is missing for."""

    counts: Counter[str]
    missing: Counter[str]
    unparsed: list[str]
    said: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, JsonValue]:
        """Return it as plain JSON."""
        plain: dict[str, JsonValue] = {"counts": {**self.counts}, "missing": {**self.missing}}
        return {**plain, "unparsed": [*self.unparsed], "said": {**self.said}}

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """Read one from a JSON file."""
        plain = json.loads(file.read_text(encoding="utf-8"))
        said = dict(plain.get("said", {}))
        return cls(Counter(plain["counts"]), Counter(plain["missing"]), list(plain["unparsed"]), said)


@dataclass
class Accounts:
    """What a labeller needs besides its settings: the cache, the ledger, and a callback for progress.

    ``counts``: questions, cached, answered, compared (pairs asked in both orders), contradicted (compared pairs whose
    orders name different winners), truncated, broken (texts that spelled control tokens). ``missing``: questions
    without a label, by cause. ``unparsed``: the first few answers without a verdict. ``said``: what servers said first,
    by cause. ``facts``: facts from local models, for a manifest. ``engines``: starts engines of a local model in
    processes of their own; None: models run in this process.
    """

    cache: LabelCache
    ledger: Ledger
    stage: str = ""
    changed: Callable[[], None] = _unwatched
    counts: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    unparsed: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    facts: list[Callable[[], dict[str, JsonValue]]] = field(default_factory=list)
    engines: OpenPool | None = None
    _taken: Tally = field(default_factory=lambda: Tally(Counter(), Counter(), []))

    def __enter__(self) -> "Accounts":
        return self

    def __exit__(self, *error: object) -> None:
        self.cache.close()
        # They hold labellers and their models, and what watches the accounts holds these in turn: nothing would be
        # freed before Python looks for cycles.
        self.facts.clear()
        self.changed = _unwatched

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
            parts.append(
                f"{number_of(spent.calls, 'call')}, {number_of(spent.prompt_tokens + spent.completion_tokens, 'token')}"
            )
            parts.append(f"cost {spent.cost:.4g}")
        if self.missing:
            parts.append("missing: " + ", ".join(f"{cause} {count}" for cause, count in sorted(self.missing.items())))
        return ", ".join(parts)

    def take(self) -> Tally:
        """Return the counts since the last call."""
        counts, missing = self.counts - self._taken.counts, self.missing - self._taken.missing
        taken = Tally(counts, missing, [*self.unparsed], {**self.said})
        self._taken = Tally(Counter(self.counts), Counter(self.missing), [])
        self.unparsed.clear()
        self.said.clear()
        return taken


def label_summary(tallies: Iterable[Tally], accounts: Accounts) -> dict[str, JsonValue]:
    """Sum up a stage's labels for its manifest: questions, cache, missing by cause, calls, tokens and cost."""
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    unparsed: list[str] = []
    said: dict[str, JsonValue] = {}
    for tally in tallies:
        counts.update(tally.counts)
        missing.update(tally.missing)
        unparsed += tally.unparsed
        said = {**tally.said, **said}
    found: dict[str, JsonValue] = {}
    if counts["questions"]:
        found |= {"questions": counts["questions"], "cache_hit_rate": counts["cached"] / counts["questions"]}
        found |= {"missing_by_cause": dict(sorted(missing.items())), **asdict(accounts.spent())}
    if counts["compared"]:
        found["orders_that_disagree"] = counts["contradicted"] / counts["compared"]
    for what in ("truncated", "broken"):
        if counts[what]:
            found[f"{what}_texts"] = counts[what]
    if said:
        found["said_by_cause"] = said
    if unparsed:
        found["unparsed_examples"] = [*unparsed[:_EXAMPLES]]
    for fact in accounts.facts:
        for name, value in fact().items():
            before = found.get(name)
            # Models of an ensemble count apart.
            found[name] = before + value if isinstance(before, int) and isinstance(value, int) else before or value
    return found
