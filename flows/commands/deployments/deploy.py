"""``prefloop deploy``: register a run as a Prefect deployment, with or without a schedule."""

import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.callables import parameter_schema

from flows.iterative import iterative
from flows.offline import offline
from flows.prefect_api.access import Api, connected, lasting_api
from flows.prefect_api.deployed.automations import install_automations, notification_block
from flows.prefect_api.deployed.parameters import dated, offer_stages
from flows.prefect_api.deployed.schedules import Schedule, firings, read_schedule
from flows.prefect_api.environment import DEFAULTS
from flows.prefect_api.secret_blocks import provide_secrets
from flows.preflight.check import check_new
from flows.preflight.understand import understood
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.config.files.shipped import is_shipped
from pipeline.errors import UserError
from pipeline.types.counts import number_of

POOL = "prefloop"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Each firing gets its own run folder: a complete offline run has nothing left to do.
EACH_TIME = "-%Y-%m-%d-%H%M"
Missed = Literal["skip", "catch-up"]


def deploy_config(
    files: list[Path],
    settings: list[str],
    name: str,
    *,
    cron: str | None = None,
    interval: str | None = None,
    timezone: str | None = None,
    missed: Missed = "skip",
    rounds_more: int | None = None,
    run_dir: Path | None = None,
    pool: str = POOL,
    automations: bool = False,
    notify: str | None = None,
) -> None:
    """Register or change the deployment ``name`` of a config, and print when it runs.

    Args:
        files: config files.
        settings: ``a.b=value``, laid over the files.
        name: the deployment's name.
        cron: when it runs; or
        interval: how often.
        timezone: IANA name for the schedule; default: UTC.
        missed: what to do with firings that could not run in time.
        rounds_more: how many rounds each run adds; default: 1 with a schedule or automations, else up to
            the config's.
        run_dir: the run's folder; default: runs/ and the config's name.
        pool: Prefect's work pool whose workers run it; created if it does not exist.
        automations: whether to install those of ``configs/prefect/automations.yaml``.
        notify: the block that an automation tells people with, ``TYPE/NAME``; None: none does.

    Raises ``UserError`` for every mistake in names, schedule, config or data, and if there is no lasting server.
    """
    if _NAME.fullmatch(name) is None:
        raise UserError(f"--name: {name!r}: only letters, digits, '.', '_' and '-', at most 100")
    schedule = read_schedule(cron, interval, timezone)
    config = load_config(files, settings)
    automations = automations or notify is not None
    by_itself = schedule is not None or automations
    offline_firings = by_itself and config.mode == "offline"
    folder = str((run_dir or Path("runs") / (config.name + EACH_TIME * offline_firings)).absolute())
    parameters: dict[str, object] = {
        "run_dir": folder,
        "config": [str(file if is_shipped(file) else file.absolute()) for file in files],
        "settings": settings,
    }
    more = _rounds_more(config, rounds_more, by_itself=by_itself)
    if config.mode == "iterative":
        parameters["rounds_more"] = more
    api = require_lasting_api()
    provide_secrets(config)
    root = Path(dated(folder, datetime.now().astimezone()))
    config, read = understood(config, root)
    for line in read:
        print(line)
    check_new(config, root)
    with connected(api), get_client(sync_client=True) as client:
        ensure_pool(client, pool)
        block = None if notify is None else notification_block(client, notify)
        deployment = _register(client, config, name, parameters, schedule, missed, pool)
        installed = install_automations(client, deployment, f"{config.mode}/{name}", block) if automations else []
    _announce(config, name, deployment, folder, schedule, missed, more, pool, api.url)
    for title in installed:
        print(f"automation {title!r}", file=sys.stderr)


def require_lasting_api() -> Api:
    """Return the API of a server that outlives this command. Raises ``UserError`` that says how to start one."""
    api = lasting_api()
    if api is None:
        raise UserError(
            "no running Prefect server can keep a deployment; start one with 'prefloop up' in another "
            "terminal, or set PREFECT_API_URL to your own"
        )
    return api


def ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    """Create the work pool, with type process, if it does not exist."""
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        try:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        except ObjectAlreadyExists:
            return


def _rounds_more(config: RunConfig, given: int | None, *, by_itself: bool) -> int:
    if config.mode == "offline":
        if given:
            raise UserError(
                "--rounds-more: offline runs train on slices of fixed data; the config's rounds sets how many"
            )
        return 0
    more = (1 if by_itself else 0) if given is None else given
    if more and config.discriminator is not None and config.discriminator.silver == "static":
        raise UserError(
            "--rounds-more: with discriminator.silver static the gold of all rounds is bought in the first one"
        )
    return more


def _register(
    client: SyncPrefectClient,
    config: RunConfig,
    name: str,
    parameters: dict[str, object],
    schedule: Schedule | None,
    missed: Missed,
    pool: str,
) -> UUID:
    flow = iterative if config.mode == "iterative" else offline
    # One run at a time: the next one is skipped, or waits.
    collision = ConcurrencyLimitStrategy.CANCEL_NEW if missed == "skip" else ConcurrencyLimitStrategy.ENQUEUE
    return client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=name,
        description=flow.description,
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        parameters=parameters,
        parameter_openapi_schema=offer_stages(parameter_schema(flow.fn).model_dump(exclude_unset=True), config),
        enforce_parameter_schema=True,
        schedules=[] if schedule is None else [DeploymentScheduleCreate(schedule=schedule, active=True)],
        paused=False,
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=collision),
        work_pool_name=pool,
        job_variables={"working_dir": str(Path.cwd()), "env": DEFAULTS},
        pull_steps=[],
        tags=["prefloop"],
    )


def _announce(
    config: RunConfig,
    name: str,
    deployment: UUID,
    folder: str,
    schedule: Schedule | None,
    missed: Missed,
    more: int,
    pool: str,
    url: str,
) -> None:
    adds = f"each adds {number_of(more, 'round')}" if more else "each goes up to the config's rounds"
    lines = [
        f"{config.mode}/{name} -> {folder}; {adds}" if config.mode == "iterative" else f"offline/{name} -> {folder}"
    ]
    if schedule is None:
        lines.append("  no schedule; start it in the UI (Run, Quick run or Custom run)")
    else:
        times = ", ".join(f"{time.astimezone():%a %Y-%m-%d %H:%M %Z}" for time in firings(schedule, 3))
        lines.append(f"  runs next at {times}; missed ones: {missed}")
    lines.append(f"  {url.removesuffix('/api')}/deployments/deployment/{deployment}")
    print("\n".join(lines))
    print(f"'prefloop up', or a worker of the pool {pool} ('prefloop serve'), runs it.", file=sys.stderr)
