"""What each kind of tracker is told, and what it already knows: a point that a killed process logged is not repeated.

They write into the run's own folder unless the environment names a server. Nothing is sent anywhere by default.
"""

import contextlib
import io
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

from pydantic import JsonValue

from pipeline.config import RunConfig
from pipeline.config.machines import TrackerKind

_PROJECT = "prefloop"
# MLflow's own limits: of a batch, and of a parameter's text.
_PARAMETERS = 100
_TEXT = 6000


class Store(ABC):
    """One tracker of a run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step, unless they are known."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left."""


def open_store(kind: TrackerKind, config: RunConfig, folder: Path, identity: str, logged: int | None) -> Store:
    """Open the run's store of a kind.

    Args:
        kind: which.
        config: the run's.
        folder: the run's folder of trackers.
        identity: the same for all processes of a run.
        logged: steps known to be logged; None: nothing is.
    """
    match kind:
        case "tensorboard":
            return _TensorBoard(folder, logged)
        case "wandb":
            return _WandB(config, folder, identity)
        case "mlflow":
            return _MLflow(config, folder, identity)
        case "trackio":
            return _Trackio(config, folder, identity)
        case _:
            assert_never(kind)


class _TensorBoard(Store):
    def __init__(self, folder: Path, logged: int | None) -> None:
        from accelerate.tracking import TensorBoardTracker

        # A kill may leave steps after the last one known to be logged; they do not count.
        self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=None if logged is None else logged + 1)
        self._tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        self._tracker.finish()


class _WandB(Store):
    """Offline unless the environment has a key or sets a mode: a run never asks for a login."""

    def __init__(self, config: RunConfig, folder: Path, identity: str) -> None:
        from accelerate.tracking import WandBTracker

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._tracker: Any = WandBTracker(
            _PROJECT,
            id=identity,
            name=config.name,
            dir=str(folder),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            config=config.model_dump(mode="json"),
        )
        self._tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        import wandb

        self._tracker.finish()
        # W&B's own process may still be writing the file; this waits for it.
        wandb.teardown()


class _MLflow(Store):
    """A SQLite file of MLflow's, or the server that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, config: RunConfig, folder: Path, identity: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        # It tells of each table that it makes.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client: Any = MlflowClient(uri)
        named = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(named)
        experiment = self._client.create_experiment(named) if known is None else known.experiment_id
        tag = "prefloop.run"
        found = self._client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{identity}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(experiment, run_name=config.name, tags={tag: identity}).info.run_id
            self._describe(config)
        # The last step of each metric that the store has.
        self._known: dict[str, int] = {}
        for name in found[0].data.metrics if found else ():
            self._known[name] = max(point.step for point in self._client.get_metric_history(self._run, name))

    def _describe(self, config: RunConfig) -> None:
        from mlflow.entities import Param

        plain = config.model_dump(mode="json")
        settings = [Param(name, str(value)[:_TEXT]) for name, value in flattened(plain).items()]
        for begin in range(0, len(settings), _PARAMETERS):
            self._client.log_batch(self._run, params=settings[begin : begin + _PARAMETERS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(name, float(value), now, step) for name, value in values.items() if step > self._known.get(name, -1)
        ]
        if new:
            self._client.log_batch(self._run, metrics=new)

    def finish(self) -> None:
        self._client.set_terminated(self._run)


class _Trackio(Store):
    """A SQLite file of trackio's, or the Space that ``TRACKIO_SPACE_ID`` names."""

    def __init__(self, config: RunConfig, folder: Path, identity: str) -> None:
        # Read once, when trackio is imported.
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{config.name}-{identity}"
        points = SQLiteStorage.get_logs(_PROJECT, name)
        self._known = {(key, int(point["step"])) for point in points for key in point}
        # It prints what a terminal of prefloop's should not show.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run: Any = trackio.init(
                _PROJECT,
                name,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
                config=config.model_dump(mode="json"),
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        new = {name: value for name, value in values.items() if (name, step) not in self._known}
        if new:
            self._run.log(new, step=step)

    def finish(self) -> None:
        import trackio

        # Not the run's own `finish`: trackio would finish it again, and print, as the program ends.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


def flattened(tree: JsonValue, path: str = "") -> dict[str, JsonValue]:
    """Return the leaves of a config by their dotted path; lists are leaves."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    found: dict[str, JsonValue] = {}
    for name, value in tree.items():
        found |= flattened(value, f"{path}.{name}" if path else name)
    return found
