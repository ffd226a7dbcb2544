"""Start of a flow: create or open the run folder, add rounds, and report mistakes.

The command line prepares the run folder itself and passes only its path. A deployment's runs pass config files,
settings and the rounds to add; they are skipped if another process is working in the folder, and wait for a person
if the gate pauses the run.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as current
from prefect.states import Cancelled, Completed, Failed

from flows.loop.object_store.held import hold_run
from flows.loop.object_store.places import local_path
from flows.loop.preparation import prepare_run
from flows.planning.cards.refusal import require_card
from flows.prefect_api.deployed.decision_form import stop_schedule_if_done, wait_for_decision
from flows.prefect_api.deployed.parameters import MAX_ROUNDS, dated
from flows.prefect_api.environment import keep_keys_out_of_logs, make_files_private, prepare_environment
from flows.prefect_api.secret_blocks import provide_secrets
from flows.preflight.check import check_new
from flows.preflight.understand import understood
from flows.report.findings.in_short import outcome
from flows.report.gather import evaluated_rounds, round_facts
from flows.run_folder.redo import parse_stage, set_aside
from flows.stages.run import COLLECT_AFTER
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.errors import Paused, RunLockedError, UserError
from pipeline.safe_text import keyless, redacted
from pipeline.storage.run_folder import RunFolder

# A firing that starts later than this counts as missed.
MISSED_AFTER = timedelta(minutes=5)
# Within an hour; an automation starts a crashed flow run again, which must not go on for ever.
MOST_CRASHES = 5

Rounds = Callable[[Path, str | None], str]


@dataclass(frozen=True)
class Firing:
    """The parameters of one run of a flow; see ``flows.prefect_api.deployed.parameters``."""

    mode: str
    run_dir: str
    config: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    rounds_more: int = 0
    until: str | None = None
    redo_from: str | None = None


def run_name() -> str:
    """Return the flow run's name: the name of its run folder."""
    return Path(str(current.parameters["run_dir"])).name


def carry_out(firing: Firing, rounds: Rounds) -> "State[str]":
    """Run ``rounds``; return the flow run's last state, whose data is the path of the report.

    A deployment's run that is skipped or refused ends here.
    """
    gc.set_threshold(COLLECT_AFTER)
    flow_run = _deployed()
    with keyless():
        report = rounds(prepare(firing), firing.until) if flow_run is None else _fire(firing, rounds, flow_run)
        return Completed(message=_outcome(Path(report).parent), data=report)


def _outcome(root: Path) -> str:
    """Return the newest round in a line, which lists and pages of flow runs show."""
    run = RunFolder(root)
    evaluated = evaluated_rounds(run)
    if not evaluated:
        return "no round is evaluated yet"
    return redacted(outcome(round_facts(run, run.config(), evaluated[-1], comparisons=0)))


def _fire(firing: Firing, rounds: Rounds, flow_run: FlowRun) -> str:
    prepare_environment()
    keep_keys_out_of_logs()
    due = flow_run.expected_start_time or datetime.now(UTC)
    crashes = _crashes(flow_run)
    if crashes > MOST_CRASHES:
        _end(flow_run, Failed(message=f"crashed {crashes} times within an hour, so it does not start again"))
    first = is_first_try(flow_run)
    if first and _is_missed(flow_run, due):
        _end(flow_run, Cancelled(name="Skipped", message=f"skipped: this firing was due at {due:%Y-%m-%d %H:%M} UTC"))
    firing = replace(firing, run_dir=dated(firing.run_dir, due))
    while True:
        try:
            make_files_private()
            root = prepare(firing, first=first)
            report = rounds(root, firing.until)
            stop_schedule_if_done(root)
            return report
        except Paused as pause:
            wait_for_decision(Path(firing.run_dir).resolve(), pause)
            first = False
        except RunLockedError as error:
            _end(flow_run, Cancelled(name="Skipped", message=f"skipped: {error}"))
        except UserError as error:
            _end(flow_run, Failed(message=str(error)))


def is_first_try(flow_run: FlowRun) -> bool:
    """Whether the flow run begins; false if it starts again after a crash or a failure, or goes on after a pause."""
    # Prefect counts no run more when a paused one is resumed.
    return flow_run.run_count <= 1 and not flow_run.empirical_policy.pause_keys


def _end(flow_run: FlowRun, state: State[object]) -> NoReturn:
    """End a deployment's run in ``state``, without a traceback in its logs."""
    state.message = redacted(state.message)
    get_run_logger().error("%s", state.message)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)
    raise Abort(str(state.message))


def prepare(firing: Firing, *, first: bool = True) -> Path:
    """Create or open the run folder that the parameters describe; return its path.

    ``first``: true on the flow run's first try. Later tries (after a pause, or a retry) continue what the first one
    began: they add no rounds and redo nothing.

    Raises ``UserError``.
    """
    root = local_path(firing.run_dir).resolve()
    run = RunFolder(root)
    if not firing.config and not run.config_file.is_file():
        raise UserError(f"run_dir: {root}: not a run folder (no config.yaml), and no config files were given")
    if not (firing.config or firing.settings or firing.rounds_more or firing.redo_from):
        return root
    files = [Path(file) for file in firing.config]
    if files:
        config, _ = understood(run.carried(load_config(files, firing.settings)), root)
    else:
        config = run.config(firing.settings)
    provide_secrets(config)
    if config.mode != firing.mode:
        raise UserError(f"mode: {config.mode}; this deployment runs {firing.mode} configs")
    if firing.rounds_more and config.discriminator is not None and config.discriminator.silver == "static":
        raise UserError(
            "rounds_more: with discriminator.silver static the gold of all rounds is bought in the first one"
        )
    require_card(config)
    check_new(config, root)
    begun = not first and run.config_file.is_file()
    rounds = run.config().rounds if begun else rounds_to_reach(run, config, firing.rounds_more)
    config = config.model_copy(update={"rounds": rounds})
    if firing.until is not None:
        parse_stage("until", firing.until, config)
    redo = parse_stage("redo_from", firing.redo_from, config) if firing.redo_from is not None and first else None
    prepare_run(config, root, extend=True)
    if redo is not None:
        with hold_run(root):
            set_aside(run, config, *redo)
    return root


def rounds_to_reach(run: RunFolder, config: RunConfig, more: int) -> int:
    """Return the run's total number of rounds.

    The complete rounds plus ``more``, but at least those begun; if ``more`` is 0, as many as the config or the folder
    has.
    """
    begun = run.config().rounds if run.config_file.is_file() else 0
    if config.mode == "offline":
        return config.rounds
    wanted = complete_rounds(run, config) + more if more else config.rounds
    if wanted > MAX_ROUNDS:
        raise UserError(f"rounds_more: {more}: the run would have {wanted} rounds; at most {MAX_ROUNDS}")
    return max(begun, wanted)


def complete_rounds(run: RunFolder, config: RunConfig) -> int:
    """Count the complete rounds from the first on: evaluated, and decided on if there is a gate."""
    last = "evaluation" if config.gate is None else "gate"
    number = 0
    while run.stage(number + 1, last).manifest() is not None:
        number += 1
    return number


def _deployed() -> FlowRun | None:
    context = FlowRunContext.get()
    flow_run = None if context is None else context.flow_run
    return flow_run if flow_run is not None and flow_run.deployment_id is not None else None


def _crashes(flow_run: FlowRun) -> int:
    """How many times the flow run crashed within the last hour."""
    since = datetime.now(UTC) - timedelta(hours=1)
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
    return sum(state.type is StateType.CRASHED and state.timestamp > since for state in states)


def _is_missed(flow_run: FlowRun, due: datetime) -> bool:
    """True if a scheduled firing is late and its deployment skips late ones."""
    if not flow_run.auto_scheduled or datetime.now(UTC) - due <= MISSED_AFTER:
        return False
    assert flow_run.deployment_id is not None
    with get_client(sync_client=True) as client:
        options = client.read_deployment(flow_run.deployment_id).concurrency_options
    return options is not None and options.collision_strategy is ConcurrencyLimitStrategy.CANCEL_NEW
