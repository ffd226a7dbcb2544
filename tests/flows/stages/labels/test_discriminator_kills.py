"""Rounds with a discriminator whose process is killed: what was paid for is kept, and the result is the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, RunStage, StageProgress, TrainerInit
from pipeline.errors import RunError
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

pytestmark = pytest.mark.whole

STAGES = ("gold", "discriminator", "labels")
TIMED = ("history.json", "steps.jsonl")
# Slow enough to be killed at work; every response that it is asked for is a line of its own.
REWARDS = """
import time
def reward(prompt, response, answer):
    time.sleep(0.02)
    with open({asked!r}, "a") as file:
        file.write("asked" + chr(10))
    return float("barn" in response)
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Context]:
    """Two folders of one run, sampled: one to be made in peace, one to be killed in every stage."""
    folder = tmp_path_factory.mktemp("kills")
    job = make_job(folder / "job")
    (folder / "rewards.py").write_text(REWARDS.format(asked=str(folder / "asked")))
    rows = [json.dumps({"prompt": f"the dog {n}"}) + "\n" for n in range(100)]
    (folder / "prompts.jsonl").write_text("".join(rows))
    settings = (
        f"prompts.path={folder / 'prompts.jsonl'}",
        "prompts_per_round=92",
        "shard_size=8",
        f"scorer={{kind: function, file: {folder / 'rewards.py'}, name: reward}}",
        # Two shards of gold; two members of so many steps that a checkpoint is met.
        "discriminator={budget: 80, members: 2, gate: {held_out: 0.25, comparisons: 1, accuracy: 0.5, error: 1}}",
        "discriminator.training={epochs: 6, batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 5}",
    )
    found = []
    for name in ("whole", "killed"):
        # Labels that are kept would be shared by the two folders.
        context = open_context(job, folder / name / "run", "iterative", *settings)
        begin(context)
        run_stage(context, 1, "samples", InventedResponses(context.policy_path(0)))  # type: ignore[arg-type]
        found.append(context)
    return found[0], found[1]


def child(context: Context) -> Child[StageProgress]:
    init = TrainerInit(str(context.run.root), context.config.model_dump(mode="json"))
    return Child(TRAINER, init, context.run.root / "logs" / "trainer.log", 120)


def call(process: Child[StageProgress], name: str, on_progress: Callable[[StageProgress], None] | None = None) -> None:
    process.call(RunStage(1, name), Done, 120, on_progress)


def hashes(context: Context) -> dict[str, dict[str, Any]]:
    """Of all files but those that hold seconds."""
    manifests = {name: context.run.stage(1, name).require() for name in STAGES}
    return {
        name: {file: facts["sha256"] for file, facts in made.files.items() if Path(file).name not in TIMED}
        for name, made in manifests.items()
    }


def at_work(context: Context, name: str) -> bool:
    """Whether the stage has kept something of what it will make."""
    kept = {"gold": "shard_*.parquet", "discriminator": "member_1/checkpoints/*", "labels": "shard_00002.parquet"}
    return any(context.run.stage(1, name).partial.glob(kept[name]))


def test_a_kill_in_gold_discriminator_or_labels_changes_nothing(begun: tuple[Context, Context]) -> None:
    whole, killed = begun
    asked = whole.run.root.parents[1] / "asked"
    with child(whole) as process:
        for name in STAGES:
            call(process, name)
    expected = len(asked.read_text().splitlines())
    assert expected == 2 * 80
    for name in STAGES:
        process = child(killed)

        def kill_at_work(_: StageProgress, process: Child[StageProgress] = process, name: str = name) -> None:
            if at_work(killed, name):
                process.kill()

        with pytest.raises((RunError, OSError)):
            call(process, name, kill_at_work)
        assert not killed.run.stage(1, name).folder.exists(), f"{name} was killed at work"
        if name == STAGES[-1]:
            break
        with child(killed) as again:
            call(again, name)
    with child(killed) as again:
        call(again, STAGES[-1])
    assert hashes(killed) == hashes(whole)
    # Gold that was written, or was in the cache, is not asked for again.
    assert len(asked.read_text().splitlines()) <= 2 * expected + 1
