"""The steps of a round's training, one JSON line each, as they are made: ``steps.jsonl``. Torch-free."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from pipeline.storage.run_folder import write_text
from pipeline.training.progress import StepReport
from pipeline.types import RunError, json_line

STEPS = "steps.jsonl"


class StepLog:
    """Writes each step at once. Training that goes on from a checkpoint makes the steps after it again, so lines of
    those that a killed try left behind are dropped when the first of them comes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._begun = False

    def add(self, report: StepReport) -> None:
        """Write the step down; steps come in order."""
        if not self._begun:
            self._keep(report.step - 1)
            self._begun = True
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json_line(asdict(report)))

    def finish(self, history: Iterable[StepReport]) -> None:
        """Leave exactly ``history``."""
        write_text(self._file, "".join(json_line(asdict(report)) for report in history))

    def _keep(self, steps: int) -> None:
        if not self._file.exists():
            return
        with self._file.open("r+b") as lines:
            kept = sum(len(line) for line in islice(lines, steps))
            lines.seek(kept, os.SEEK_SET)
            lines.truncate()


def read_steps(file: Path) -> tuple[StepReport, ...]:
    """The steps in ``file``; a last line that a kill tore is left out. Raises ``RunError`` if it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        return tuple(StepReport(**json.loads(line)) for line in lines if line.endswith("\n"))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: not a readable list of steps ({error})") from None
