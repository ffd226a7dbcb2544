"""One sampling engine, seen from the parent: a process in its seat, started at first use and again after a failure."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flows.workers.child import Child
from flows.workers.messages import (
    SAMPLER,
    Done,
    Load,
    Loaded,
    MoreRequests,
    P,
    Request,
    SampleCall,
    Sampled,
    SamplerInit,
    Score,
    ScoresReply,
    Service,
)
from flows.workers.pool.dispatch import Tray
from flows.workers.pool.seating import Seat
from flows.workers.pool.worker import StartWorker, Worker
from pipeline import config
from pipeline.errors import RunError
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response

# On a CPU it makes sums independent of the number of threads, so engines with few and with many cores agree.
_SUMS = "MKL_CBWR"


def start_child(
    service: Service[P], init: Request, log: Path, start_timeout: float, seat: Seat, env: Mapping[str, str | None]
) -> Worker[P]:
    """Start ``service`` in a child process in its seat. See ``StartWorker``."""
    return Child(service, init, log, start_timeout, {**seat.environment(), **env})


class SamplerEngine:
    """An engine in its own process; a failure ends it, and the next call starts another, with the same weights."""

    def __init__(
        self,
        sampler: config.SamplerSettings,
        init: SamplerInit,
        log: Path,
        seat: Seat,
        env: Mapping[str, str | None],
        start: StartWorker = start_child,
    ) -> None:
        """Start nothing before the first ``load``; ``env``: variables to set, or to remove (None)."""
        self.name = seat.name
        self._settings = sampler
        self._init = init
        self._log = log
        self._seat = seat
        self._env = env if seat.cards else {_SUMS: os.environ.get(_SUMS, "AUTO"), **env}
        self._start = start
        self._worker: Worker[Sampled] | None = None
        self._asked: Load | None = None
        self._sampling = config.SamplingSettings()
        self.abandoned = False

    @property
    def pid(self) -> int | None:
        """The process id; None without a process on this machine."""
        return None if self._worker is None else self._worker.pid

    def load(self, asked: Load) -> Loaded:
        """Load and check weights; a process that dies or is late is replaced, ``retries`` times.

        Raises:
            RunError: the engine failed, or does not hold these weights.
        """
        self._asked = asked
        for left in range(self._settings.retries, -1, -1):
            try:
                loaded = self._running().call(asked, Loaded, self._settings.start_timeout)
            except RunError:
                # A failed handshake would fail again; a process that died or hung gets another try.
                answered = self._worker is not None and self._worker.alive
                self.kill()
                if answered or left == 0:
                    raise
            else:
                return loaded
        raise AssertionError("unreachable")

    def sampling(self, settings: config.SamplingSettings) -> "SamplerEngine":
        """Answer the next tasks with ``settings``."""
        self._sampling = settings
        return self

    def answers(self, tray: Tray[SampleRequest, tuple[Response, ...]]) -> Iterator[tuple[Response, ...]]:
        """See ``Desk``: an engine with continuous batching takes further requests as soon as it has room."""
        worker, settings = self._loaded(), self._sampling
        room, open_ = room_of(self._settings, settings.n), not in_blocks(self._settings)
        if not (first := tray.take(room)):
            return
        request = SampleCall(tuple(first), settings.model_dump(mode="json"), open_)
        for sampled in worker.stream(request, Done, self._settings.shard_timeout):
            yield sampled.responses
            if not open_ or tray.unanswered > 0.75 * room:
                continue
            more = tray.take(room)
            if more or not tray.unanswered:
                worker.send(MoreRequests(tuple(more)))
                open_ = bool(more)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``pipeline.sampling.sampler.Sampler.score``."""
        return self._scored(sequences, best=False).rows

    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """See ``pipeline.sampling.sampler.Ranking.ranked``."""
        reply = self._scored(sequences, best=True)
        return [[*zip(*row, strict=True)] for row in zip(reply.rows, reply.best, strict=True)]

    def _scored(self, sequences: Sequence[Sequence[int]], *, best: bool) -> ScoresReply:
        for left in range(self._settings.retries, -1, -1):
            try:
                request = Score(tuple(tuple(ids) for ids in sequences), best)
                return self._loaded().call(request, ScoresReply, self._settings.shard_timeout)
            except RunError:
                self.kill()
                if left == 0:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the process and free its memory; a later call starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def kill(self) -> None:
        """Like ``close``, but at once."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _running(self) -> Worker[Sampled]:
        if self.abandoned:
            raise RunError("the run ends")
        if self._worker is None or not self._worker.alive:
            timeout = self._settings.start_timeout
            self._worker = self._start(SAMPLER, self._init, self._log, timeout, self._seat, self._env)
        return self._worker

    def _loaded(self) -> Worker[Sampled]:
        if self._asked is None:
            raise RunError("the sampler was called before it loaded a policy")
        if self._worker is None or not self._worker.alive:
            self._running().call(self._asked, Loaded, self._settings.start_timeout)
        return self._running()


def in_blocks(sampler: config.SamplerSettings) -> bool:
    """Whether an engine decodes batches of its own making, whose content decides the last bits."""
    return isinstance(sampler, config.TransformersSampler | config.DiffusersSampler)


def room_of(sampler: config.SamplerSettings, n: int) -> int:
    """Number of requests that an engine holds at a time, so that its batch stays full to the end; at least a block."""
    match sampler:
        case config.VllmSampler():
            return max(2, 4 * sampler.max_num_seqs // n)
        case config.ServerSampler():
            return max(2, 8 * sampler.concurrency // n)
        case config.TransformersSampler() | config.DiffusersSampler():
            return 1
