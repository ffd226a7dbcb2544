"""Events of a run, for automations of Prefect's and other readers of its event feed.

Each event names the run folder as its resource, and the flow run, flow and deployment as related resources, so that
an automation can act on them. It is sent from the outbox: no stage waits for it.
"""

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import FlowRunContext
from prefect.events.schemas.events import Event, RelatedResource, Resource

from flows.report.facts import LabelFacts, RoundFacts
from pipeline.safe_text import redacted
from pipeline.types import content_hash


class RunEvent(msgspec.Struct, frozen=True):
    """The payload of an event; the subclass names the event."""

    event: ClassVar[str]


class RoundCompleted(RunEvent, frozen=True):
    """A round is sampled, labelled, trained, evaluated and, with a gate, decided on.

    ``reward``: mean over held-out prompts; ``reward_change``: since the round before. ``win_rate_vs_start``: share of
    comparisons won. ``kl_to_start``: nats a token. ``cost``: of labels, in the currency of the config's prices.
    """

    event = "prefloop.round.completed"
    round: int
    rounds: int
    reward: float | None
    reward_change: float | None
    win_rate_vs_start: float | None
    kl_to_start: float | None
    seconds: float
    cost: float


class GateDecided(RunEvent, frozen=True):
    """The gate decided after a round. ``decision``: promote, stop, roll_back or pause."""

    event = "prefloop.gate.decided"
    round: int
    decision: str
    reasons: tuple[str, ...]
    best_round: int | None


class RunPaused(RunEvent, frozen=True):
    """The run waits for a person. ``message`` says for what, and how to answer."""

    event = "prefloop.run.paused"
    message: str


class BudgetReached(RunEvent, frozen=True):
    """A judge's budget was spent before all questions of a stage were asked. ``unasked``: how many were left."""

    event = "prefloop.budget.reached"
    round: int
    stage: str
    unasked: int
    cost: float


class AlarmRaised(RunEvent, frozen=True):
    """A round's training ended with something to know of: an alarm, an early end, weights that are not the last."""

    event = "prefloop.alarm.raised"
    round: int
    message: str


class WorkerStale(RunEvent, frozen=True):
    """The process that last wrote in the run folder is gone without an end; this flow run goes on in its place."""

    event = "prefloop.worker.stale"
    host: str
    pid: int
    flow_run: str


class DataArrived(RunEvent, frozen=True):
    """Files that a deployment reads are new, or have changed, and are complete. ``files``: their paths."""

    event = "prefloop.data.arrived"
    files: tuple[str, ...]


class RunCompleted(RunEvent, frozen=True):
    """All rounds of the run are complete. ``report``: the path of the report."""

    event = "prefloop.run.completed"
    rounds: int
    report: str


EVENTS: tuple[type[RunEvent], ...] = (
    RoundCompleted,
    GateDecided,
    RunPaused,
    BudgetReached,
    AlarmRaised,
    WorkerStale,
    DataArrived,
    RunCompleted,
)


def round_completed(facts: RoundFacts, before: RoundFacts | None, rounds: int) -> RoundCompleted:
    """Return the event of a round; ``before`` are the facts of the round before it."""
    earlier = None if before is None else before.reward
    change = None if facts.reward is None or earlier is None else facts.reward - earlier
    wins = facts.win_rate_vs_start
    return RoundCompleted(
        facts.round,
        rounds,
        facts.reward,
        change,
        None if wins is None else wins.mean,
        facts.kl_to_start,
        facts.seconds,
        facts.label_cost,
    )


def budget_reached(round_: int, labels: LabelFacts) -> BudgetReached | None:
    """Return the event of a stage's labels; None if its budget was enough."""
    unasked = labels.missing_by_cause.get("budget", 0)
    return BudgetReached(round_, labels.stage, unasked, labels.cost) if unasked else None


def run_resource(root: Path) -> dict[str, str]:
    """Return the labels of a run folder as a resource; its id is the same for each flow run in it."""
    where = root.resolve()
    return {
        "prefect.resource.id": f"prefloop.run.{content_hash(str(where), 12)}",
        "prefect.resource.name": where.name,
        "prefloop.run-folder": str(where),
        "prefloop.host": socket.gethostname(),
    }


def related_resources() -> list[dict[str, str]]:
    """Return the flow run in whose process this is called, its flow and its deployment, as related resources."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return []
    run = context.flow_run
    found = [("flow-run", run.id, run.name), ("flow", run.flow_id, None if context.flow is None else context.flow.name)]
    if run.deployment_id is not None:
        found.append(("deployment", run.deployment_id, None))
    return [_related(kind, str(identity), name) for kind, identity, name in found]


def deployment_resource(deployment: UUID, name: str) -> dict[str, str]:
    """Return a deployment as a related resource of an event that no flow run sends."""
    return _related("deployment", str(deployment), name)


def send_event(client: SyncPrefectClient, event: RunEvent, root: Path, related: list[dict[str, str]]) -> None:
    """Send ``event`` to the server of ``client``; keys are taken out of its texts."""
    payload: dict[str, Any] = {name: _keyless(value) for name, value in msgspec.to_builtins(event).items()}
    made = Event(
        occurred=datetime.now(UTC),
        event=event.event,
        resource=Resource(run_resource(root)),
        related=[RelatedResource(one) for one in related],
        payload=payload,
    )
    client.request("POST", "/events", json=[made.model_dump(mode="json")])


def _keyless(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)
    return [_keyless(one) for one in value] if isinstance(value, list) else value


def _related(kind: str, identity: str, name: str | None) -> dict[str, str]:
    named = {} if name is None else {"prefect.resource.name": name}
    return {"prefect.resource.id": f"prefect.{kind}.{identity}", "prefect.resource.role": kind, **named}
