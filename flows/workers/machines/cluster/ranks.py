"""Training processes on a cluster: Ray Train starts them, brings them together, and starts them again after a loss.

Each of Ray's workers keeps one trainer process, the same as on one machine. The actor ``TrainHost`` on the driver's
machine runs Ray Train, and passes on what the first process reports.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import ray

from flows.workers.child import Child
from flows.workers.machines.cluster.home import Home, mismatch, ours, settle
from flows.workers.machines.cluster.host import failure, put_answer
from flows.workers.machines.cluster.mailbox import Mailbox
from flows.workers.messages import (
    TRAINER,
    Done,
    Failed,
    Reply,
    RunStage,
    StageProgress,
    TrainerInit,
    WireMessage,
    name_of,
)
from pipeline.errors import Paused, RunError, UserError
from pipeline.training.distributed.meeting import Meeting

# Losses of a process after which training goes on from its last checkpoint, in one stage.
RESTARTS = 2
# What Ray says of a worker's place; a process that is alone must not see it.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
DEVICE = "ACCELERATE_TORCH_DEVICE"


@dataclass(frozen=True)
class Ranks:
    """The training processes of a run.

    Attributes:
        init: of each, but for rank and meeting.
        log: of the first one; the others add their rank.
        start_timeout: in seconds.
        stall_timeout: seconds that one may wait for another.
        count: how many.
        cpus: cores of each.
        cards: of each: one or none.
        interface: network interface between them; None: gloo's and NCCL's own choice.
        runtime_env: of their actors.
    """

    init: TrainerInit
    log: str
    start_timeout: float
    stall_timeout: float
    count: int
    cpus: int
    cards: int
    interface: str | None
    runtime_env: dict[str, Any]


@dataclass(frozen=True)
class RankJob:
    """A stage for all of them: call ``number`` of ``host``, which ends them if it is silent for ``silence`` seconds."""

    ranks: Ranks
    request: RunStage
    home: Home
    silence: float
    host: Any
    number: int


class TrainHost:
    """Runs training stages one after the other; ends with the driver."""

    def __init__(self, home: Home, silence: float, ranks: Ranks) -> None:
        """``home``, ``silence``: see ``ChildHost``."""
        self._home, self._silence, self._ranks = home, silence, ranks
        self._box = Mailbox(silence, lambda: None)
        settle(home)

    def ask(self, number: int, request: RunStage, reply: type[Reply], timeout: float | None) -> None:
        """Run a stage as call ``number``, answered by ``Done``."""
        host = ray.get_runtime_context().current_actor
        job = RankJob(self._ranks, request, self._home, self._silence, host, number)

        def work() -> Reply:
            fit_ranks(job)
            return Done()

        self._box.open(number)
        threading.Thread(target=put_answer, args=(self._box, number, work), name=f"fit-{number}", daemon=True).start()

    def put(self, number: int, message: WireMessage) -> None:
        """Pass on what a training process says."""
        self._box.put(number, message)

    def take(self, number: int, seconds: float) -> tuple[list[bytes], bool]:
        """Return answers to call ``number``; see ``ChildHost.take``."""
        return self._box.take(number, seconds), True

    def alive(self) -> bool:
        """Return True."""
        return True

    def beat(self) -> None:
        """Note a sign of life of the driver."""
        self._box.beat()

    def here(self) -> bool:
        """Answer a training process, which ends without an answer."""
        return True

    def close(self) -> None:
        """Do nothing: between stages no training process runs."""

    def end(self) -> None:
        """Do nothing: training ends with this actor."""


def fit_ranks(job: RankJob) -> None:
    """Run a stage with Ray Train.

    Raises:
        RunError: processes were lost more often than ``RESTARTS``, or failed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ranks = job.ranks
    resources = {"CPU": float(ranks.cpus), **({"GPU": float(ranks.cards)} if ranks.cards else {})}
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"job": job},
        # Hosts only meet here. Their processes use NCCL among themselves.
        torch_config=TorchConfig(backend="gloo", timeout_s=int(ranks.stall_timeout)),
        scaling_config=ScalingConfig(
            num_workers=ranks.count,
            use_gpu=bool(ranks.cards),
            resources_per_worker=resources,
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=f"{job.request.round:03d}_{job.request.name}",
            storage_path=str(Path(ranks.log).parent / "ray_train"),
            failure_config=FailureConfig(max_failures=RESTARTS),
            worker_runtime_env=ranks.runtime_env,
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RunError(f"training on the cluster failed: {_last_line(error)}") from error


def train_rank(given: dict[str, Any]) -> None:
    """Keep one training process until it has done its part; called by Ray Train in each of its workers.

    What it was told of by its process is final and goes to the host. If it was lost, Ray Train starts all again.
    """
    job: RankJob = given["job"]
    ranks = job.ranks
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def tell(message: WireMessage) -> None:
        ray.get(job.host.put.remote(job.number, message), timeout=job.silence)

    settle(job.home)
    lacking = mismatch(job.home)
    if lacking is not None:
        tell(Failed(f"cluster: {lacking}", "user"))
        return
    init = msgspec.structs.replace(ranks.init, rank=rank, meeting=_meeting(job) if world > 1 else None)
    log = Path(ranks.log)
    log = log.with_name(f"{log.stem}_{rank}{log.suffix}") if rank else log
    env: dict[str, str | None] = {**ours(os.environ), **dict.fromkeys((*PLACE, DEVICE))}
    with Child(TRAINER, init, log, ranks.start_timeout, env) as child:
        threading.Thread(target=_end_without, args=(job, child), daemon=True).start()
        try:
            # The host's own time limit counts: what one process waits for may be another.
            child.call(job.request, Done, None, tell if rank == 0 else None)
        except (UserError, Paused) as error:
            tell(failure(error))
        except RunError as error:
            if not child.alive or str(error).startswith(f"{name_of(job.request)}: "):
                # Also what is only a connection to another process that is lost.
                raise
            tell(failure(error))


def _meeting(job: RankJob) -> Meeting:
    there, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Meeting(there, port, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), job.ranks.interface)


def _end_without(job: RankJob, child: Child[StageProgress]) -> None:
    """End this process and its child once the host does not answer: another may have taken over the work."""
    over = threading.Event()
    while child.alive:
        try:
            ray.get(job.host.here.remote(), timeout=job.silence)
        except ray.exceptions.RayError:
            child.kill()
            os._exit(1)
        over.wait(job.silence / 6)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
