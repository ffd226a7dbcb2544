"""Entry of the child process that runs every stage that needs torch (``python -m flows.stages.trainer_service``).

If training runs in several processes, this is the first of them and starts the others, which have the same entry. They
train together, and share passes without gradient; everything else runs in the first process alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.stages.context import Context
from flows.stages.labels.feed import ShardFeed
from flows.stages.run import follow_stage, run_stage
from flows.workers.followers import Followers, share_of_cores
from flows.workers.messages import Done, JoinPasses, NextShard, Request, RunStage, StageProgress, TrainerInit
from flows.workers.patience import further_seconds
from flows.workers.pool.cards import VISIBLE, cards_of_launch
from flows.workers.serving import Caller, Handler, serve_calls
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed.launch import Launch, Placement, read_launch
from pipeline.training.distributed.meeting import meet

if TYPE_CHECKING:
    from flows.workers.machines.leader import OtherMachines

_Send = Callable[[StageProgress], None]
# Of the time that this process may take to start, the part in which other machines must come.
SHARE_TO_COME = 0.8
# The others wait for a process that loads, saves or hashes a large model, and the run ends them all if none gets on:
# this limit of collective operations is only the last resort.
_COLLECTIVE_LIMITS = 10


class TrainerService:
    """Runs and commits one stage per call."""

    def __init__(self) -> None:
        self._followers: Followers | None = None
        self._machines: OtherMachines | None = None

    def init(self, request: TrainerInit, send: _Send) -> Done:
        """Take the run folder, the resolved config and the rank."""
        self._init = request
        self._run = RunFolder(Path(request.run))
        self._config = RunConfig.model_validate(request.config)
        self._rank = request.rank
        self._launch = read_launch(self._config)
        if self._launch is not None and self._rank == 0 and request.meeting is None:
            self._lead_from(self._launch)
        if self._launch is not None and self._launch.zero is not None:
            # If DeepSpeed is installed, other libraries import it too, and it chooses the device when first imported.
            os.environ["DS_ACCELERATOR"] = "cpu" if self._launch.cpu else "cuda"
        return Done()

    def _lead_from(self, launch: Launch) -> None:
        """Choose this machine's accelerators, which its other processes inherit, and call other machines together."""
        cards = cards_of_launch(launch.devices)
        if cards is not None:
            os.environ[VISIBLE] = cards
        if launch.machines > 1:
            from flows.workers.machines.leader import OtherMachines

            patience = self._config.sampler.start_timeout * SHARE_TO_COME
            self._machines = OtherMachines(launch, self._run.root, self._init.config, patience)

    def stage(self, request: RunStage, caller: Caller) -> Done:
        """Run stage ``name`` of ``round``."""
        round_, name = request.round, request.name
        told = StageProgress(0, 0, "")

        def report(done: int, total: int, note: str) -> None:
            nonlocal told
            told = StageProgress(done, total, note)
            caller(told)

        launch, context = self._launch, Context(self._run, self._config, report)
        if request.by_shard:
            feed = ShardFeed(lambda: caller.further(NextShard, wait=False), lambda: caller(told))
            context = replace(context, shards=feed)
        if launch is not None and self._init.meeting is not None:
            self._meet(launch, request, context)
        elif launch is None:
            run_stage(context, round_, name)
        elif self._rank > 0:
            follow_stage(Context(self._run, self._config, placement=self._join(launch)), round_, name)
        elif self._trains(round_, name):
            with self._beside(launch, request):
                run_stage(replace(context, placement=self._join(launch)), round_, name)
        elif launch.processes == 1:
            run_stage(context, round_, name)
        else:
            run_stage(replace(context, together=lambda: self._together(launch)), round_, name)
        return Done()

    def _meet(self, launch: Launch, request: RunStage, context: Context) -> None:
        """Do this process's part of a stage for which something else started all of them."""
        from pipeline.training.distributed.passes import follow_passes

        placement = self._join(launch)
        if self._trains(request.round, request.name):
            do = follow_stage if self._rank > 0 else run_stage
            do(replace(context, placement=placement), request.round, request.name)
        elif self._rank > 0:
            follow_passes(placement)
        else:
            with _leading(placement):
                run_stage(replace(context, together=lambda: nullcontext(placement)), request.round, request.name)

    def passes(self, request: JoinPasses, send: _Send) -> Done:
        """Take part in passes that the first process leads."""
        from pipeline.training.distributed.passes import follow_passes

        assert self._launch is not None, "only a process of several is asked"
        follow_passes(self._join(self._launch))
        return Done()

    def close(self) -> None:
        """End the processes that this one started."""
        if self._followers is not None:
            self._followers.end()

    def _trains(self, round_: int, name: str) -> bool:
        return name == "policy" and (round_ > 0 or self._config.warm_start is not None)

    @contextmanager
    def _together(self, launch: Launch) -> Iterator[Placement]:
        """Lead passes of all processes inside the block."""
        with self._beside(launch, JoinPasses()):
            placement = self._join(launch)
            with _leading(placement):
                yield placement

    @contextmanager
    def _beside(self, launch: Launch, request: RunStage | JoinPasses) -> Iterator[None]:
        """Have the other processes do ``request`` while this one is inside the block."""
        if launch.processes == 1:
            yield
            return
        if self._followers is None:
            self._store.unlink(missing_ok=True)
            log = self._run.root / "logs" / "trainer.log"
            timeout = self._config.sampler.start_timeout + further_seconds(self._config)
            self._followers = Followers(launch.on_each - 1, self._init, log, timeout)
        machines, trouble = self._machines, None if self._machines is None else self._machines.trouble
        number = 0 if machines is None else machines.begin(request)
        with _threads(share_of_cores(launch.on_each) if launch.cpu else None), self._followers.beside(request, trouble):
            yield
        if machines is not None:
            machines.finish(number, self._config.training.stall_timeout)

    def _join(self, launch: Launch) -> Placement:
        from pipeline.training.distributed.process_group import join

        timeout = _COLLECTIVE_LIMITS * (self._config.training.stall_timeout + further_seconds(self._config))
        meeting = self._init.meeting
        if meeting is None:
            accelerator = join(launch, self._rank, self._store, timeout)
        else:
            accelerator = meet(launch, self._rank, meeting, timeout)
        return Placement(accelerator, launch.sharding or launch.zero)

    @property
    def _store(self) -> Path:
        """The file store through which the training processes find each other."""
        return self._run.root / "logs" / "trainer.store"


@contextmanager
def _leading(placement: Placement) -> Iterator[None]:
    """Lead passes inside the block, and let the other processes go after it."""
    from pipeline.training.distributed.passes import end_passes

    try:
        yield
    except (UserError, RunError):
        # This process's own: the others are there, and wait.
        end_passes(placement)
        raise
    end_passes(placement)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside the block, torch computes in ``count`` threads; None: the number stays as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Serve until the parent closes the connection."""
    service = TrainerService()
    handlers: dict[type[Request], Handler] = {
        TrainerInit: service.init,
        RunStage: service.stage,
        JoinPasses: service.passes,
    }
    serve_calls(handlers, service.close, (NextShard,))


if __name__ == "__main__":
    main()
