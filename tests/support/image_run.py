"""A small run of images without Prefect, whole or killed in a stage: ``python -m tests.support.image_run ROOT ...``."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

from flows.loop.preparation import prepare_run
from flows.loop.rounds import Stages, labelled, learn, start_run
from flows.run_folder.ancestry import parent
from flows.run_folder.stage_table import spec_of
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.local import Workers
from pipeline.config.files import load_config
from pipeline.storage.run_folder import RunFolder, StageWriter
from tests.support.places import ROOT

# Of configs/images_offline.yaml, which samples for evaluation alone.
OFFLINE = ("pairs.pairs=40", "held_out.prompts=16", "training.max_steps=4", "training.epochs=2")
SMALL = (
    "prompts.prompts=40",
    "prompts.pictures=48",
    "held_out.prompts=16",
    "prompts_per_round=24",
    "shard_size=8",
    "policy.channels=[8]",
    "warm_start.max_steps=3",
    "warm_start.batch_size=16",
    "sampling.n=4",
    "sampler.steps=2",
    "sampler.batch=16",
    "training.score.draws=1",
    "training.max_steps=4",
    "training.epochs=7",
    "training.batch_size=8",
    "training.micro_batch_size=8",
    "training.checkpoint_every=1",
    "warm_start.checkpoint_every=1",
    "evaluation.bootstrap=100",
)


class ImageStages(Stages):
    """Runs stages one after the other; dies at a progress report of one of them if asked to."""

    def __init__(self, run: RunFolder, workers: Workers, die: tuple[str, int] | None) -> None:
        """``die``: ROUND:STAGE, and at which of its reports; 0: before it is committed."""
        self.run, self.workers, self._die = run, workers, die

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        """Complete a stage."""
        context = Context(self.run, self.run.config(), self._reports(f"{round_}:{name}"))
        with self._dying(f"{round_}:{name}"):
            run_stage(context, round_, name, self.workers if spec_of(name).sampled else None)
        if self._die == (f"{round_}:{name}", -1):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.run.stage(round_, name).title

    def _dying(self, place: str) -> AbstractContextManager[object]:
        """With report 0, let the stage ``place`` die where all its files are written, before it is committed."""
        if self._die != (place, 0):
            return nullcontext()
        return patch.object(StageWriter, "commit", lambda *given: os.kill(os.getpid(), signal.SIGKILL))

    def _reports(self, place: str) -> "Reports":
        return Reports(self._die[1] if self._die is not None and self._die[0] == place else None)


class Reports:
    """Counts progress reports; kills the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self._left = last

    def __call__(self, done: int, total: int, note: str) -> None:
        """Take a report."""
        assert "token" not in note, note
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run_images(
    root: Path,
    *settings: str,
    rounds: int = 1,
    die: tuple[str, int] | None = None,
    size: Sequence[str] = SMALL,
    file: str = "images.yaml",
) -> RunFolder:
    """Run round 0 and ``rounds`` rounds in the folder ``root``; fewer than 0: only make the folder."""
    config = load_config([ROOT / "configs" / file], [*size, *settings])
    run = prepare_run(config, root)
    if rounds < 0:
        return run
    with Workers(root, config) as workers:
        stage = ImageStages(run, workers, die)
        data, _ = start_run(stage, config)
        for round_ in range(1, rounds + 1):
            policy = run.stage(parent(run, config, round_), "policy").title
            made = (data, policy) if config.mode == "offline" else (labelled(stage, config, round_, policy),)
            pairs = stage("pairs", round_, *made)
            learn(stage, config, round_, pairs, policy)
    return run


def killed(root: Path, place: str, report: int) -> int:
    """Run in a process of its own that dies in the stage ``place``; return its exit status."""
    command = [sys.executable, "-m", "tests.support.image_run", str(root), place, str(report)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    run_images(Path(sys.argv[1]), die=(sys.argv[2], int(sys.argv[3])))
