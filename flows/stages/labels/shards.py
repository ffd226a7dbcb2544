"""Labelling shard by shard: paid answers are kept, missing ones are counted, and too few labels stop the run."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.workers.pool.label_engine import label_engines
from pipeline.errors import RunError
from pipeline.storage.atomic import json_text, write_text
from pipeline.storage.rows import read_group_file, write_groups
from pipeline.storage.seals import Seals
from pipeline.types import Group
from pipeline.types.rubrics import criteria_of
from reward_models.answers.accounts import Accounts, Tally, label_summary
from reward_models.answers.cache import LabelCache
from reward_models.answers.missing import FINAL
from reward_models.answers.spending import Ledger
from reward_models.labeller import Labeller, label

REPORT_SECONDS = 1.0
# In the counts of a shard: SHA-256 of the samples that it labels.
_OF = "of"


@dataclass(frozen=True)
class Shard:
    """Groups labelled between two commits to disk.

    Attributes:
        name: of the file with their labels.
        read: reads them.
        rows: groups in all shards of the stage.
        sha256: of the file that they come from; None: they come from several.
    """

    name: str
    read: Callable[[], Iterable[Group]]
    rows: int
    sha256: str | None = None


@contextmanager
def open_accounts(context: Context, round_: int, name: str) -> Iterator[Accounts]:
    """Open the accounts of a stage that labels: the cache that runs share, the run's own ledger, and engines."""
    root = context.run.root
    given = context.config.labelling.cache
    cache = root.parent / "labels.sqlite" if given is None else Path(given)
    title = context.run.stage(round_, name).title
    with label_engines(context.config, root) as engines:
        made = Accounts(LabelCache(cache), Ledger(root / "spending.jsonl"), title, engines=engines)
        with made as accounts:
            yield accounts


# Criteria of rubrics whose scores are added up: the first so many; of them, those with most labels are told.
COUNTED_CRITERIA, TOLD_CRITERIA = 10_000, 20


class LabelCounts:
    """Counts over labelled groups, one by one."""

    def __init__(self) -> None:
        self.rows = self.labels = self.missing = self._spreads = 0
        self._reward = self._spread = 0.0
        self._criteria: dict[str, tuple[int, float]] = {}

    def add(self, group: Group) -> None:
        """Count one more."""
        self.rows += 1
        for score in group.scores:
            if score is None:
                self.missing += 1
            else:
                self.labels, self._reward = self.labels + 1, self._reward + score
        for spread in group.disagreement:
            if spread is not None:
                self._spreads, self._spread = self._spreads + 1, self._spread + spread
        for place, (criterion, _) in enumerate(criteria_of(group.prompt) if group.criteria else ()):
            known = [score for of in group.criteria if (score := of[place]) is not None]
            if known and (criterion in self._criteria or len(self._criteria) < COUNTED_CRITERIA):
                count, total = self._criteria.get(criterion, (0, 0.0))
                self._criteria[criterion] = (count + len(known), total + sum(known))

    def outcome(self, facts: dict[str, JsonValue]) -> Outcome:
        """Rows, means and counts, and ``facts``. Raises ``RunError`` without any label."""
        if not self.labels:
            raise RunError("the labeller gave no score to any response")
        found: dict[str, JsonValue] = {"reward": self._reward / self.labels, "labels": self.labels}
        if self._spreads:
            found["disagreement"] = self._spread / self._spreads
        if self._criteria:
            often = sorted(self._criteria.items(), key=lambda one: -one[1][0])[:TOLD_CRITERIA]
            found["criteria"] = {name: {"mean": total / count, "labels": count} for name, (count, total) in often}
        return Outcome(self.rows, {**found, "missing_labels": self.missing, **facts})


def label_shards(
    context: Context,
    folder: Path,
    shards: Iterable[Shard],
    labeller: Labeller,
    accounts: Accounts,
    seen: LabelCounts | None = None,
    sealed: Callable[[Path], None] = lambda file: None,
) -> dict[str, JsonValue]:
    """Label ``shards`` into files of their names in ``folder``; return the manifest's metrics of labels and costs.

    ``seen`` counts every labelled group; ``sealed`` is called with each finished file, in order.

    When a stopped stage continues, it labels a shard again if labels are missing; labels that exist cost nothing.

    Raises:
        RunError: fewer responses than ``labelling.min_yield`` got a score.
    """
    progress = LabelProgress(context, 0, accounts)
    accounts.changed = progress.tick
    responses = scored = made = 0
    spent = 0.0
    seals = Seals(folder)
    for shard in shards:
        file, counts = folder / shard.name, Path(shard.name).with_suffix(".json").name
        progress.total = shard.rows
        if seals.hold(counts) and seals.hold(file.name) and _serves(folder / counts, shard):
            groups = list(read_group_file(file))
        else:
            started = time.monotonic()
            groups = label(list(shard.read()), labeller)
            spent += time.monotonic() - started
            made += sum(len(group.responses) for group in groups)
            # Before the rows are written: a shard that exists always has its own counts.
            file.unlink(missing_ok=True)
            told = json_text({**accounts.take().plain(), **({} if shard.sha256 is None else {_OF: shard.sha256})})
            seals.text(counts, told)
            write_text(folder / counts, told)
            write_groups(file, groups, seals.of(file.name))
        if seen is not None:
            for group in groups:
                seen.add(group)
        responses += sum(len(group.responses) for group in groups)
        scored += sum(score is not None for group in groups for score in group.scores)
        progress.shard(len(groups), responses)
        if scored < context.config.labelling.min_yield * responses:
            raise RunError(_too_few(context, scored, responses, shard_tallies(folder)))
        sealed(file)
    # Only of this attempt: shards from an earlier one took no time here.
    rate: dict[str, JsonValue] = {"labels_per_second": made / spent} if spent > 0 else {}
    return {**rate, **label_summary(shard_tallies(folder), accounts)}


def _too_few(context: Context, scored: int, responses: int, tallies: list[Tally]) -> str:
    missing = sum((tally.missing for tally in tallies), Counter[str]())
    causes = ", ".join(f"{cause} {count}" for cause, count in missing.most_common()) or "the labeller gave none"
    said = next((f"; it said: {tally.unparsed[0]!r}" for tally in tallies if tally.unparsed), "")
    first: dict[str, str] = {}
    for tally in tallies:
        first = {**tally.said, **first}
    said += "".join(f"; {cause}: {text!r}" for cause, text in first.items())
    return (
        f"{scored} of {responses} responses got a score, below labelling.min_yield "
        f"{context.config.labelling.min_yield:g}; missing labels by cause: {causes}{said}. What was labelled "
        "is kept; the same command asks again for the rest"
    )


def _serves(counts: Path, shard: Shard) -> bool:
    """Whether labels are of ``shard``, and lack none that may be available now: that the labeller never answered."""
    # An earlier version wrote labels only of samples that were complete, and named all of them.
    of = json.loads(counts.read_text(encoding="utf-8")).get(_OF, shard.sha256)
    return of == shard.sha256 and all(cause in FINAL for cause in Tally.read(counts).missing)


def shard_tallies(folder: Path) -> list[Tally]:
    """Return the counts of the labelled shards in ``folder``; none if there is no such folder."""
    return [Tally.read(file) for file in sorted(folder.glob("shard_*.json"))]


class LabelProgress:
    """The stage's progress line, updated at most once a second as answers come in."""

    def __init__(self, context: Context, total: int, accounts: Accounts) -> None:
        """``total``: of prompts; may be set later."""
        self._done = self._responses = 0
        self._context = context
        self.total = total
        self._accounts = accounts
        self._started = self._last = time.monotonic()

    def shard(self, prompts: int, responses: int) -> None:
        """Report one more labelled shard with ``prompts`` prompts and ``responses`` responses."""
        self._done += prompts
        self._responses = responses
        self._show()

    def tick(self) -> None:
        """Report progress, unless the last report is less than a second old."""
        if time.monotonic() - self._last >= REPORT_SECONDS:
            self._show()

    def _show(self) -> None:
        self._last = time.monotonic()
        counts = self._accounts.counts
        labels = counts["cached"] + counts["answered"] if counts["questions"] else self._responses
        parts = [f"{labels / max(self._last - self._started, 1e-9):.0f} labels/s", self._accounts.note()]
        self._context.report(self._done, self.total, ", ".join(part for part in parts if part))
