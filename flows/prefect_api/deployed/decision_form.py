"""Wait in Prefect for a person, after the gate pauses a run: the schedule stops, and the flow run shows a form.

Once answered there, or with ``prefloop approve``, the flow run and the schedule continue.
"""

from pathlib import Path
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.input import RunInput
from prefect.input.run_input import keyset_from_paused_state
from prefect.logging import get_run_logger
from prefect.states import Suspended
from pydantic import Field

from flows.prefect_api.access import connected, lasting_api
from flows.prefect_api.artefacts import artefact_key
from flows.prefect_api.deployed.parameters import dated
from flows.report.findings.in_short import in_short
from flows.report.gather import round_facts
from flows.run_folder.approvals import (
    how_to_answer,
    read_approval,
    read_decision,
    record_approval,
    waiting,
    why_it_waits,
)
from pipeline.errors import Paused
from pipeline.storage.run_folder import RunFolder

# Prefix of a suspended flow run's key; the round's number follows.
ROUND = "round-"
_SUSPENDED = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))


class DecisionForm(RunInput):
    """The form for the decision."""

    decision: Literal["promote", "stop", "roll_back"] = Field(
        title="Decision",
        description="promote: go on from this round; roll_back: go on from the best round; stop: the run is done",
    )
    reason: str = Field("", title="Reason", description="kept with the decision", max_length=2000)
    by: str = Field("", title="By", description="your name; kept with the decision", max_length=200)


def wait_for_decision(root: Path, pause: Paused) -> None:
    """Suspend this flow run until there is a decision; then write it to the run folder and return.

    The deployment's schedules are off in the meantime; they stay off if the decision is to stop.
    """
    run = RunFolder(root)
    waits = waiting(run)
    context = FlowRunContext.get()
    if not waits or context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        raise pause
    flow_run, deployment = context.flow_run.id, context.flow_run.deployment_id
    answer = _ask(flow_run, deployment, waits[-1], *_question(run, waits[-1], str(pause)))
    record_approval(root, waits[-1], answer.decision, answer.by or None, answer.reason)
    if answer.decision != "stop":
        with get_client(sync_client=True) as client:
            client.resume_deployment(deployment)


def stop_schedule_if_done(root: Path) -> None:
    """Turn off the deployment's schedules if the gate has stopped the run: nothing is left to run."""
    waits = waiting(RunFolder(root))
    context = FlowRunContext.get()
    if waits and context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None:
        deployment = context.flow_run.deployment_id
        with get_client(sync_client=True) as client:
            said = "; the schedule is off" if _scheduled(client, deployment) else ""
            client.pause_deployment(deployment)
        get_run_logger().warning("The gate of round %d has stopped the run%s.", waits[-1], said)


def release(root: Path) -> str | None:
    """Resume the flow run that waits for a decision made elsewhere; return its name, or None.

    The decision is in the run folder. ``stop`` leaves the schedule off.
    """
    api = lasting_api()
    if api is None:
        return None
    with connected(api), get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=_SUSPENDED):
            round_ = _round_waited_for(flow_run, root.resolve())
            approval = None if round_ is None else read_approval(RunFolder(root), round_)
            if approval is None or flow_run.deployment_id is None:
                continue
            answer = {"decision": approval.decision, "reason": approval.reason, "by": approval.by}
            client.resume_flow_run(flow_run.id, run_input=answer)
            if approval.decision != "stop":
                client.resume_deployment(flow_run.deployment_id)
            return str(flow_run.name)
    return None


def _round_waited_for(flow_run: FlowRun, root: Path) -> int | None:
    """Return the round that a suspended flow run asks about; None if it belongs to another run folder."""
    named, due = str(flow_run.parameters.get("run_dir", "")), flow_run.expected_start_time
    key = "" if flow_run.state is None else flow_run.state.state_details.pause_key or ""
    if due is None or Path(dated(named, due)).resolve() != root or not key.startswith(ROUND):
        return None
    return int(key.removeprefix(ROUND))


def _question(run: RunFolder, round_: int, pause: str) -> tuple[str, str]:
    """Return why the run waits and how to answer, for the state, and what is known of the round, for the form.

    One of Prefect's UIs reads the form's text as Markdown, the other as one paragraph of plain text.
    """
    made = read_decision(run, round_)
    why = pause if made is None else why_it_waits(round_, made)
    answer = f"Press Resume, or use: {how_to_answer(run, round_)}. The run then goes on by itself."
    facts, *earlier = [round_facts(run, run.config(), one, comparisons=0) for one in (round_, *{0, round_ - 1})]
    known = [f"{question} {text}." for question, text in in_short(facts, earlier) if question != "For you"]
    page = f"The whole round is in the artifact {artefact_key(run.root, 'round')}."
    return f"{why}\n{answer}", "\n\n".join([f"{why.replace(chr(10), chr(10) * 2)}.", *known, page])


def _ask(flow_run: UUID, deployment: UUID, round_: int, why: str, form_says: str) -> DecisionForm:
    """Return the answer to an earlier try of this flow run, else raise ``Pause``, which ends the process."""
    state: State[object] = Suspended(message=why, pause_key=f"{ROUND}{round_}")
    keys = keyset_from_paused_state(state)
    state.state_details.run_input_keyset = {str(name): key for name, key in keys.items()}
    form = DecisionForm.with_initial_data(description=form_says)
    with get_client(sync_client=True) as client:
        result = client.set_flow_run_state(flow_run, state)
        if result.status is SetStateStatus.REJECT:
            answer = DecisionForm.load(keys)
            assert isinstance(answer, DecisionForm), "outside an event loop it is loaded at once"
            return answer
        form.save(keys)
        said = "\nThe schedule is off until the decision is made." if _scheduled(client, deployment) else ""
        client.pause_deployment(deployment)
    get_run_logger().warning("%s%s", why, said)
    raise Pause(state=state)


def _scheduled(client: SyncPrefectClient, deployment: UUID) -> bool:
    """Whether the deployment has a schedule that is on."""
    return any(schedule.active for schedule in client.read_deployment(deployment).schedules)
