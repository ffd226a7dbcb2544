"""Display of a run in Prefect's UI: names, tags, progress, results of each round, and the children's logs.

An artefact's key begins with the run's name and a hash of its folder, so two runs never mix. It is the same in every
round and every flow run of a folder: Prefect lists the rounds as versions of one artefact, and its artefacts page has
five per run.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from flows.prefect_api.events import RunEvent, RunPaused, related_resources, send_event
from flows.prefect_api.outbox import Outbox
from flows.report.facts import RoundFacts
from flows.report.gather import evaluated_rounds, round_facts
from flows.report.html.pictures.artefact import pictures_page
from flows.report.html.pictures.shown import round_pictures
from flows.report.markdown import clock_time, comparisons_page, report_link, round_page, rounds_rows
from flows.report.progress import Report, Whole, stage_alone
from flows.workers.logs.child_logs import ChildLogs
from pipeline.config import RunConfig
from pipeline.errors import Paused
from pipeline.storage.run_folder import RunFolder
from pipeline.types import content_hash
from pipeline.types.counts import number_of

GATE_TAG = "gate:"


def run_title(run: RunFolder, config: RunConfig, decision: str | None = None) -> str:
    """Return the title of a flow run: ``tiny · iterative · 2 rounds``, or ``tiny · promote · iterative · 2 rounds``.

    ``decision``: the gate's; it comes early, since lists on a phone cut names off.
    """
    decided = "" if decision is None else f" · {decision.replace('_', ' ')}"
    return f"{run.root.name}{decided} · {config.mode} · {number_of(config.rounds, 'round')}"


def run_tags(config: RunConfig) -> list[str]:
    """Return the tags by which flow runs can be filtered."""
    tags = [f"run:{config.name}", f"mode:{config.mode}", f"loss:{config.loss.preset}", f"sampler:{config.sampler.kind}"]
    return [*tags, f"scorer:{config.scorer.kind}"] if config.scorer is not None else tags


def artefact_key(root: Path, kind: str) -> str:
    """Return a key such as ``tiny-3f2a91-rounds`` for the run folder ``tiny``: lowercase letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-") or "run"
    return f"{words}-{content_hash(str(root.resolve()), 6)}-{kind}"


class Screen:
    """Display of one flow run while its block runs; never stops the run or delays a stage."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self._run = run
        self._config = config
        self._outbox = Outbox()
        self._logs = ChildLogs(run.root / "logs")
        self._pages = RoundPages(run, config, _flow_run())
        self._related = related_resources()
        # Rounds that this flow run has worked on and not yet shown.
        self._worked: set[int] = set()
        # The flow run and its tags, once they are known.
        self._tagged: tuple[UUID, list[str]] | None = None

    def __enter__(self) -> "Screen":
        self._outbox.__enter__()
        self._announce()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Lists of runs show it, and nothing else of the results.
        self._outbox.put(self._tag_decision)
        self._show_rounds(*self._worked)
        self._outbox.put(self._pages.end)
        if isinstance(error, Paused):
            self.tell(RunPaused(str(error)))
        self._outbox.__exit__(kind, error, trace)

    def tell(self, event: RunEvent) -> None:
        """Send an event of this run, after what was sent before."""
        self._outbox.put(partial(send_event, event=event, root=self._run.root, related=self._related))

    @contextlib.contextmanager
    def stage(self, round_: int, title: str, unit: str, whole: Whole = stage_alone) -> Iterator[Report]:
        """Show this task's stage; the yielded report function may be called from any thread, at any rate.

        ``whole``: the words on the run's end.
        """
        # The first stage of another round shows that a round is over, whatever its last stage was.
        self._show_rounds(*(self._worked - {round_}))
        self._worked.add(round_)
        log = get_run_logger()
        self._logs.begin()
        shown = StageArtefact(self._pages.key("progress"), title, unit, _task_run(), whole)
        with self._outbox.ticking(shown.send), self._outbox.ticking(lambda _: self._logs.show(log)):
            try:
                yield shown.report
                shown.end(complete=True)
            except BaseException:
                shown.end(complete=False)
                raise
            finally:
                self._logs.show(log, over=True)

    def _show_rounds(self, *rounds: int) -> None:
        for round_ in sorted(rounds):
            self._worked.discard(round_)
            self._outbox.put(partial(self._pages.show, round_))

    def _announce(self) -> None:
        """Set name and tags on the flow run, but not on task runs, where tags cost seconds each."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return
        title = run_title(self._run, self._config)
        # Those of an earlier try, before a pause, told another decision.
        earlier = {tag for tag in context.flow_run.tags if not tag.startswith(GATE_TAG)}
        flow_run, tags = context.flow_run.id, sorted({*earlier, *run_tags(self._config)})
        self._tagged = flow_run, tags

        def announce(client: SyncPrefectClient) -> None:
            client.update_flow_run(flow_run, name=title, tags=tags)

        self._outbox.put(announce)

    def _tag_decision(self, client: SyncPrefectClient) -> None:
        """Put the gate's newest decision in the flow run's name, which all lists show, and in a tag to filter by."""
        decision = self._pages.newest_decision()
        if self._tagged is not None and decision is not None:
            flow_run, tags = self._tagged
            name = run_title(self._run, self._config, decision)
            client.update_flow_run(flow_run, name=name, tags=[*tags, f"{GATE_TAG}{decision}"])


class RoundPages:
    """Artefacts with the results of rounds; made only in the outbox's thread."""

    def __init__(self, run: RunFolder, config: RunConfig, flow_run: UUID | None) -> None:
        self._run = run
        self._config = config
        self._flow_run = flow_run
        # Facts about each round for the table and later pages.
        self._briefs: dict[int, RoundFacts] = {}
        self._table_sent = False

    def key(self, kind: str) -> str:
        """Return the key of an artefact of this run."""
        return artefact_key(self._run.root, kind)

    def show(self, round_: int, client: SyncPrefectClient) -> None:
        """Make a page for ``round_``, its comparisons, and the table of rounds; do nothing before its evaluation."""
        rounds = evaluated_rounds(self._run)
        if round_ not in rounds:
            return
        name, facts = self._run.root.name, round_facts(self._run, self._config, round_)
        self._briefs[round_] = replace(facts, training=None, comparisons=())
        earlier = [self._brief(one) for one in sorted({0, round_ - 1} & {*rounds} - {round_})]
        page = round_page(name, self._config.rounds, facts, earlier)
        self._make(client, "round", "markdown", f"{name}: round {round_} of {self._config.rounds}", page)
        if facts.comparisons:
            described = f"{name}: held-out prompts with responses of the start and of round {round_}"
            self._make(client, "comparisons", "markdown", described, comparisons_page(name, facts))
        shown = round_pictures(self._run, self._config, round_)
        if shown.grid or shown.pairs:
            described = f"{name}: images of round {round_} of {self._config.rounds}, for the same prompts and seeds"
            self._make(client, "images", "markdown", described, pictures_page(name, shown))
        self._table(client)

    def end(self, client: SyncPrefectClient) -> None:
        """Link the report; also show the table if no round was run."""
        if not self._table_sent and evaluated_rounds(self._run):
            self._table(client)
        report = self._run.root.resolve() / "report.html"
        if report.is_file():
            self._make(client, "report", "markdown", f"{self._run.root.name}: report", report_link(report))

    def newest_decision(self) -> str | None:
        """Return what the gate, or a person, decided after the newest evaluated round; None without a decision."""
        rounds = evaluated_rounds(self._run)
        gate = self._brief(rounds[-1]).gate if rounds else None
        return None if gate is None else gate.answer or gate.decision

    def _table(self, client: SyncPrefectClient) -> None:
        facts = [self._brief(one) for one in evaluated_rounds(self._run)]
        described = f"{self._run.root.name}: rounds 0 to {facts[-1].round}, measured on held-out prompts"
        self._make(client, "rounds", "table", described, json.dumps(rounds_rows(facts), ensure_ascii=False))
        self._table_sent = True

    def _brief(self, round_: int) -> RoundFacts:
        if round_ not in self._briefs:
            facts = round_facts(self._run, self._config, round_, comparisons=0)
            self._briefs[round_] = replace(facts, training=None)
        return self._briefs[round_]

    def _make(self, client: SyncPrefectClient, kind: str, form: str, described: str, data: str) -> None:
        client.create_artifact(
            ArtifactCreate(key=self.key(kind), type=form, description=described, data=data, flow_run_id=self._flow_run)
        )


class StageArtefact:
    """Progress artefact of one task run, created with the stage's first report."""

    def __init__(
        self, key: str, title: str, unit: str, task_run: tuple[UUID | None, UUID | None], whole: Whole = stage_alone
    ) -> None:
        """``task_run``: the ids of the flow run and the task run."""
        self._whole = whole
        self._key, self._title, self._unit = key, title, unit
        self._flow_run, self._task_run = task_run
        self._id: UUID | None = None
        self._sent = ""
        self._told: tuple[int, int, str] | None = None
        self._begun = time.monotonic()
        self._first = 0
        self._started = self._ended = 0.0
        self._complete = False

    def report(self, done: int, total: int, note: str) -> None:
        """Record the stage's progress; ``send`` sends it."""
        if self._told is None:
            self._first, self._started = done, time.monotonic()
        self._told = (done, total, note)

    def end(self, complete: bool) -> None:
        """Record the end of the stage."""
        self._ended, self._complete = time.monotonic(), complete

    def send(self, client: SyncPrefectClient) -> None:
        """Make or update the artefact if anything has changed."""
        if self._told is None:
            return
        done, total, _ = self._told
        share = 100.0 if self._complete else min(100.0 * done / max(total, 1), 100.0)
        described = self._description()
        if described == self._sent:
            return
        if self._id is None:
            made = ArtifactCreate(
                key=self._key,
                type="progress",
                description=described,
                data=share,
                flow_run_id=self._flow_run,
                task_run_id=self._task_run,
            )
            self._id = client.create_artifact(made).id
        else:
            client.update_artifact(self._id, ArtifactUpdate(data=share, description=described))
        self._sent = described

    def _description(self) -> str:
        assert self._told is not None
        done, total, note = self._told
        # Leave out an engine's start and an earlier try's work, which a single report does not show.
        more, since = (done - self._first, self._started) if done > self._first else (done, self._begun)
        known = done > self._first or self._ended
        rate = more / max((self._ended or time.monotonic()) - since, 1e-9) if known else 0.0
        parts = [f"{done:,} of {total:,} {self._unit}"]
        if rate > 0:
            parts.append(f"{rate:,.1f} {self._unit}/s")
        if self._ended:
            parts.append("complete" if self._complete else "stopped")
        left = (total - done) / rate if rate > 0 and not self._ended else None
        if left is not None:
            parts.append(f"{clock_time(left)} left")
        whole = "" if self._ended else self._whole(left)
        return f"{self._title}: {' · '.join([*parts, *filter(None, (note, whole))])}"


def _flow_run() -> UUID | None:
    context = FlowRunContext.get()
    return None if context is None or context.flow_run is None else context.flow_run.id


def _task_run() -> tuple[UUID | None, UUID | None]:
    context = TaskRunContext.get()
    return (None, None) if context is None else (context.task_run.flow_run_id, context.task_run.id)
