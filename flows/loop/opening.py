"""Opening a run folder to work in it: the lock, the children."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.loop.object_store.held import hold_run
from flows.loop.rounds import Reached
from flows.loop.stage_tasks import StageTasks
from flows.prefect_api.artefacts import Screen
from flows.prefect_api.secret_blocks import provide_secrets
from flows.prefect_api.slots import SharedSlots
from flows.prefect_api.states import true_states
from flows.report.trackers.follow import Trackers, require_trackers
from flows.run_folder.links import require_own_folders
from flows.run_folder.redo import finish_setting_aside
from flows.workers.local import Workers
from pipeline.config import RunConfig
from pipeline.safe_text import name_keys
from pipeline.storage.run_folder import RunFolder


@contextmanager
def open_run(root: Path, until: str | None = None) -> Iterator[tuple[RunFolder, RunConfig, StageTasks]]:
    """Lock the run and start its children on demand; end all of them with the block.

    The block ends early, without an error, when the stage ``until`` (``ROUND:STAGE``) is complete.
    """
    run = RunFolder(root)
    require_own_folders(root)
    with hold_run(root) as lease, true_states(root):
        finish_setting_aside(run)
        config = run.config()
        name_keys(config.model_dump(mode="json"))
        provide_secrets(config)
        require_trackers(config)
        with (
            Screen(run, config) as screen,
            Trackers(run, config) as trackers,
            suppress(Reached),
            Workers(root, config) as workers,
            SharedSlots(config.resources.model_dump(), lambda name: _free(workers, name)) as slots,
        ):
            yield run, config, StageTasks(run, config, workers, screen, lease, trackers, slots, until)


def _free(workers: Workers, resource: str) -> None:
    """End what uses a resource, before another run may have it."""
    if resource == "gpu":
        workers.free_accelerator()
