"""Trackers that are fed from the run folder: TensorBoard, Weights & Biases, MLflow, trackio.

They follow the files that training and evaluation write. ``trackers/logged.json`` records how far they have come:
whatever is killed at any time, each step is logged once, and trackers added later log a run from its beginning. They
live in the flow's process, so that training does not know about them.
"""

import importlib.util
import json
import time
import uuid
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.storage.atomic import write_json
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS

if TYPE_CHECKING:
    from flows.report.trackers.stores import Store

_FOLDER = "trackers"
# Time between two looks at the steps of a round in training.
_LOOK_SECONDS = 2.0


def require_trackers(config: RunConfig) -> None:
    """Raise ``UserError`` if a tracker's package is not installed."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed (pip install 'prefloop[{name}]')")


class Trackers:
    """The run's trackers; a context manager. If the config has none, it does nothing and imports nothing."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self._run = run
        self._config = config
        self._open: list[Store] = []
        self._looked = 0.0
        self._state_file = run.root / _FOLDER / "logged.json"
        # Steps logged of each round, and rounds whose evaluation is logged.
        self._steps: dict[int, int] = {}
        self._evaluated: set[int] = set()
        self._id = uuid.uuid4().hex[:8]

    def __enter__(self) -> "Trackers":
        if self._config.trackers:
            self._load()
            self._start()
            self.follow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.follow()
        for tracker in self._open:
            tracker.finish()

    def look(self) -> None:
        """Call ``follow``, but at most once every few seconds."""
        if self._open and time.monotonic() - self._looked > _LOOK_SECONDS:
            self.follow()

    def follow(self) -> None:
        """Log everything in the run folder that is not logged yet."""
        if not self._open:
            return
        before = (dict(self._steps), set(self._evaluated))
        for round_ in self._run.rounds():
            if round_ > 0:
                self._follow_steps(round_)
            self._follow_evaluation(round_)
        if before != (self._steps, self._evaluated):
            self._save()
        self._looked = time.monotonic()

    def _follow_steps(self, round_: int) -> None:
        stage = self._run.stage(round_, "policy")
        files = [folder / STEPS for folder in (stage.folder, stage.partial) if (folder / STEPS).is_file()]
        if not files:
            return
        done, offset = self._steps.get(round_, 0), self._offset(round_)
        with files[0].open(encoding="utf-8") as lines:
            for line in islice(lines, done, None):
                if not line.endswith("\n"):
                    break
                step = json.loads(line)
                done += 1
                shown = {f"train/{name}": value for name, value in step.items() if name not in ("step", "steps")}
                self._log({**shown, "train/round": round_}, offset + done)
        self._steps[round_] = done

    def _follow_evaluation(self, round_: int) -> None:
        if round_ in self._evaluated or self._run.stage(round_, "evaluation").manifest() is None:
            return
        from flows.report.gather import evaluation_metrics

        shown = {f"round/{name}": value for name, value in evaluation_metrics(self._run, round_).items()}
        self._log(shown, self._offset(round_) + self._steps.get(round_, 0))
        self._evaluated.add(round_)

    def _offset(self, round_: int) -> int:
        return sum(count for number, count in self._steps.items() if number < round_)

    def _log(self, values: dict[str, Any], step: int) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for tracker in self._open:
            tracker.log(numbers, step=step)

    def _load(self) -> None:
        if not self._state_file.is_file():
            return
        try:
            plain = json.loads(self._state_file.read_text(encoding="utf-8"))
            self._steps = {int(round_): int(count) for round_, count in plain["steps"].items()}
            self._evaluated = {int(round_) for round_ in plain["evaluated"]}
            self._id = str(plain["id"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._state_file}: not readable ({error}); delete {self._state_file.parent} to log everything again"
            ) from None

    def _save(self) -> None:
        steps = {str(round_): count for round_, count in self._steps.items()}
        write_json(self._state_file, {"id": self._id, "steps": steps, "evaluated": sorted(self._evaluated)})

    def _start(self) -> None:
        from accelerate import PartialState

        from flows.report.trackers.stores import open_store

        folder = self._state_file.parent
        folder.mkdir(parents=True, exist_ok=True)
        # accelerate's choice of a device is not needed here, and the flow's process must not take memory on one.
        PartialState(cpu=True)
        # Before anything is logged, so that what a killed process logged is found again.
        self._save()
        logged = sum(self._steps.values()) if self._evaluated else None
        for kind in self._config.trackers:
            self._open.append(open_store(kind, self._config, folder, self._id, logged))
