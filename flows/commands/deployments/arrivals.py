"""New and changed data of deployments that start on it: a worker looks for files, and tells Prefect's server.

Watched are prompt and pair files on this machine, and the answers that people put into the run folder.
"""

import contextvars
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from flows.prefect_api.access import Api, connected, prefect_home
from flows.prefect_api.deployed.automations import started_by_data
from flows.prefect_api.events import DataArrived, deployment_resource, send_event
from pipeline.config import FileData, MixtureData, RunConfig
from pipeline.config.files import load_config
from pipeline.data.sources import files_of, of_path
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json

_LOOK_SECONDS = 5.0
# What a worker saw last, for files that arrive while none runs.
_SEEN = "prefloop-data.json"
# A run that its gate paused goes on when a person has decided; another one would ask the same.
_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
Seen = dict[str, list[int]]


@contextmanager
def data_watched(api: Api) -> Iterator[None]:
    """Send ``prefloop.data.arrived`` for the deployments that start on it, as long as the block runs."""
    over = threading.Event()

    def watch() -> None:
        arrivals = Arrivals(prefect_home() / _SEEN)
        while not over.wait(_LOOK_SECONDS):
            try:
                with connected(api), get_client(sync_client=True) as client:
                    arrivals.look(client)
            except (RunError, UserError, OSError, httpx.HTTPError) as error:
                print(f"new data cannot be looked for: {str(error).splitlines()[0]}", file=sys.stderr)
                over.wait(_LOOK_SECONDS * 12)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="arrivals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


class Arrivals:
    """Files of deployments, and how they were when their arrival was last told.

    A file counts as arrived when two looks in a row find it alike: nobody writes to it any more.
    """

    def __init__(self, notes: Path) -> None:
        """``notes``: the file in which other workers of this Prefect home find what this one saw."""
        self._notes = notes
        self._before: dict[str, Seen] = {}

    def look(self, client: SyncPrefectClient) -> list[UUID]:
        """Look at the files of all deployments that start on data; tell of new ones; return whose they are."""
        told = self._told()
        found = {}
        arrived = []
        for identity in started_by_data(client):
            try:
                deployment = client.read_deployment(identity)
            except ObjectNotFound:
                continue
            name, now = str(identity), _state(deployment)
            settled = self._before.get(name) == now
            known = told.get(name)
            found[name] = now
            if known is None:
                told[name] = now
                continue
            files = tuple(file for file, version in now.items() if known.get(file) != version)
            # A run that starts while another one has not ended would be skipped, so it is told of afterwards.
            if settled and files and not _works(client, identity):
                told[name] = now
                root = Path(str(deployment.parameters["run_dir"]))
                send_event(client, DataArrived(files), root, [deployment_resource(identity, deployment.name)])
                arrived.append(identity)
        self._before = found
        if told != self._told():
            write_json(self._notes, told)
        return arrived

    def _told(self) -> dict[str, Seen]:
        try:
            told: dict[str, Seen] = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told


def _works(client: SyncPrefectClient, deployment: UUID) -> bool:
    """Whether a run of the deployment is under way or about to be, or waits for a person."""
    of = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY)),
    )
    return bool(client.read_flow_runs(flow_run_filter=of, limit=1))


def _state(deployment: DeploymentResponse) -> Seen:
    """Size and time of change, in ns, of each file that the deployment's runs may read."""
    found = {}
    for file in _files(deployment):
        try:
            stat = file.stat()
        except OSError:
            continue
        found[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return found


def _files(deployment: DeploymentResponse) -> list[Path]:
    parameters, folder = deployment.parameters, Path(str((deployment.job_variables or {}).get("working_dir", ".")))
    answers = Path(str(parameters["run_dir"])).glob("questions/*/answers.jsonl")
    try:
        files = [folder / str(name) for name in parameters.get("config", [])]
        config = load_config(files, [str(one) for one in parameters.get("settings", [])])
    except UserError:
        # A run of it says what is wrong.
        return [*answers]
    return [*_data(config, folder), *answers]


def _data(config: RunConfig, folder: Path) -> Iterator[Path]:
    for source in (config.prompts, config.pairs):
        parts = source.of if isinstance(source, MixtureData) else (source,)
        for part in parts:
            if isinstance(part, FileData):
                try:
                    yield from files_of(of_path(part, str(folder / part.path)))
                except UserError:
                    continue
