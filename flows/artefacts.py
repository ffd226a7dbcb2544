"""What Prefect's UI shows of a run: names, tags, progress, what each round made, and what the children say.

An artefact's key begins with the run's name and a hash of its folder, so that two runs never mix, and is the same in
every round and every flow run of a folder: Prefect lists the rounds as versions of one artefact.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from flows.child_logs import ChildLogs
from flows.outbox import Outbox
from flows.progress import Report
from pipeline.config import RunConfig
from pipeline.store import RunFolder
from pipeline.types import content_hash


def run_title(config: RunConfig) -> str:
    """How a flow run is called: ``tiny · iterative · 2 rounds``."""
    return f"{config.name} · {config.mode} · {config.rounds} round{'s' * (config.rounds > 1)}"


def run_tags(config: RunConfig) -> list[str]:
    """What flow runs can be filtered by."""
    tags = [f"run:{config.name}", f"mode:{config.mode}", f"loss:{config.loss.preset}", f"sampler:{config.sampler.kind}"]
    return [*tags, f"scorer:{config.scorer.kind}"] if config.scorer is not None else tags


def artefact_key(name: str, root: Path, kind: str) -> str:
    """``tiny-3f2a91-samples``: lowercase letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{words}-{content_hash(str(root.resolve()), 6)}-{kind.replace('_', '-')}"


class Screen:
    """Shows one flow run while its block runs; it never stops the run, nor keeps a stage waiting."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self._run = run
        self._config = config
        self._outbox = Outbox()
        self._logs = ChildLogs(run.root / "logs")

    def __enter__(self) -> "Screen":
        self._outbox.__enter__()
        self._announce()
        return self

    def __exit__(self, *error: object) -> None:
        self._outbox.__exit__(*error)

    @contextlib.contextmanager
    def stage(self, name: str, title: str, unit: str) -> Iterator[Report]:
        """Show the stage whose task this is; the report that it yields may be called from any thread, at any rate."""
        log = get_run_logger()
        self._logs.begin()
        shown = StageProgress(artefact_key(self._config.name, self._run.root, name), title, unit, _task_run())
        with self._outbox.ticking(shown.send), self._outbox.ticking(lambda _: self._logs.show(log)):
            try:
                yield shown.report
                shown.end(complete=True)
            except BaseException:
                shown.end(complete=False)
                raise
            finally:
                self._logs.show(log, over=True)

    def _announce(self) -> None:
        """Give the flow run its name and tags; on the flow run alone, since tags on task runs cost seconds each."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return
        flow_run, tags = context.flow_run.id, sorted({*context.flow_run.tags, *run_tags(self._config)})

        def announce(client: SyncPrefectClient) -> None:
            client.update_flow_run(flow_run, name=run_title(self._config), tags=tags)

        self._outbox.put(announce)


class StageProgress:
    """A progress artefact of one task run, made with the stage's first report."""

    def __init__(self, key: str, title: str, unit: str, task_run: tuple[UUID | None, UUID | None]) -> None:
        """``task_run``: the ids of the flow run and the task run."""
        self._key, self._title, self._unit = key, title, unit
        self._flow_run, self._task_run = task_run
        self._id: UUID | None = None
        self._sent = ""
        self._told: tuple[int, int, str] | None = None
        self._first = 0
        self._started = self._ended = 0.0
        self._complete = False

    def report(self, done: int, total: int, note: str) -> None:
        """Remember how far the stage is; what is sent, and when, is up to ``send``."""
        if self._told is None:
            self._first, self._started = done, time.monotonic()
        self._told = (done, total, note)

    def end(self, complete: bool) -> None:
        """The stage is over."""
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
        passed = (self._ended or time.monotonic()) - self._started
        rate = (done - self._first) / passed if passed > 0 else 0.0
        parts = [f"{done:,} of {total:,} {self._unit}"]
        if rate > 0:
            parts.append(f"{rate:,.1f} {self._unit}/s")
        if self._ended:
            parts.append("complete" if self._complete else "stopped")
        elif rate > 0:
            parts.append(f"{duration((total - done) / rate)} left")
        return f"{self._title}: {' · '.join([*parts, note] if note else parts)}"


def duration(seconds: float) -> str:
    """``0:07``, ``12:30`` or ``3:02:11``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _task_run() -> tuple[UUID | None, UUID | None]:
    context = TaskRunContext.get()
    return (None, None) if context is None else (context.task_run.flow_run_id, context.task_run.id)
