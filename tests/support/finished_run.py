"""A whole run on a tiny model, in this process: what tests damage, redo and free."""

from pathlib import Path
from typing import Any

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.storage.atomic import write_text
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS
from tests.support.tiny_run import InventedResponses, begin, open_context, train


def evaluate(context: Context, round_: int) -> None:
    """The last stages of a round."""
    workers: Any = InventedResponses(context.policy_path(0))
    for name in ("evaluation_samples", "evaluation"):
        run_stage(context, round_, name, workers)


def finished(job: Path, root: Path, *settings: str, mode: str = "iterative") -> Context:
    """Round 0 and all rounds of the job in the folder ``root``."""
    root.mkdir()
    context = open_context(job, root, mode, *settings)
    write_text(context.run.config_file, dump_config(context.config))
    complete(context)
    return context


def complete(context: Context) -> None:
    """What of the run is not there."""
    begin(context)
    evaluate(context, 0)
    for round_ in range(1, context.config.rounds + 1):
        train(context, round_)
        evaluate(context, round_)


def digests(run: RunFolder) -> dict[str, object]:
    """SHA-256 of what was made, but for times."""
    return {
        f"{stage.title}/{name}": facts["sha256"]
        for stage in run.stages()
        for name, facts in stage.require().files.items()
        if name != STEPS
    }
