"""The trainer's process as the flow sees it: one that hangs is ended, one that has died is replaced."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from flows.stages.context import Context
from flows.workers.local import Workers
from pipeline.errors import RunError
from tests.support.tiny_run import begin, make_job, open_context, supply


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run that is about to train its first round."""
    job = make_job(tmp_path_factory.mktemp("job"))
    made = open_context(job, tmp_path_factory.mktemp("run"), "offline", "training.epochs=40")
    begin(made)
    supply(made, 1)
    return made


@pytest.fixture
def workers(context: Context) -> Iterator[Workers]:
    with Workers(context.run.root, context.config) as made:
        yield made


def trainer() -> psutil.Process:
    found = []
    for child in psutil.Process().children():
        # Others of pytest's children may have ended.
        with suppress(psutil.Error):
            found += [child] if "flows.stages.trainer_service" in child.cmdline() else []
    assert len(found) == 1
    return found[0]


@pytest.mark.whole
def test_a_step_that_takes_longer_than_allowed_ends_training_with_the_trainer_s_last_words(
    context: Context, short_deadlines: None
) -> None:
    training = context.config.training.model_copy(update={"stall_timeout": 1234.0})
    stopped: list[psutil.Process] = []

    def stop(done: int, total: int, note: str) -> None:
        if not stopped:
            stopped.append(trainer())
            with (context.run.root / "logs" / "trainer.log").open("a") as log:
                log.write("loss 0.6931\n")
            stopped[0].suspend()
            while stopped[0].status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)

    with Workers(context.run.root, context.config.model_copy(update={"training": training})) as workers:
        with pytest.raises(RunError, match=r"(?s)trainer_service: stage was silent for 1234 seconds.*loss 0\.6931"):
            workers.run_stage(1, "policy", stop)
        assert not stopped[0].is_running()
    assert not context.run.stage(1, "policy").folder.exists()


@pytest.mark.whole
def test_a_trainer_that_died_between_two_stages_is_replaced(context: Context, workers: Workers) -> None:
    workers.run_stage(1, "pairs", lambda done, total, note: None)
    first = trainer()
    os.kill(first.pid, signal.SIGKILL)
    psutil.wait_procs([first], timeout=60)
    workers.run_stage(1, "policy", lambda done, total, note: None)
    assert context.run.stage(1, "policy").require().rows > 0 and trainer().pid != first.pid
