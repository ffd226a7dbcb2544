"""The run's sampler: engines side by side, each in its own process, that answer in the order of the requests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import msgspec
from pydantic import JsonValue

from flows.workers.messages import Load, Loaded, SamplerInit
from flows.workers.pool.dispatch import TaskBlock, answered
from flows.workers.pool.sampler_engine import SamplerEngine, in_blocks, room_of, start_child
from flows.workers.pool.seating import Seat
from flows.workers.pool.worker import NoPlaceError, StartWorker
from pipeline import config
from pipeline.errors import RunError, UserError
from pipeline.safe_text import key_variables
from pipeline.sampling.sampler import SORTED_TOGETHER, SampleRequest
from pipeline.types import Response

_ONE = (Seat("engine"),)


class SamplerPool:
    """Engines that hold the same weights; each of them checks its own."""

    def __init__(
        self,
        sampler: config.SamplerSettings,
        chat: config.ChatSettings,
        log: Path,
        trust_remote_code: bool = False,
        keys: frozenset[str] = frozenset(),
        quantisation: config.Quantisation | None = None,
        adapters: bool = False,
        *,
        seats: Sequence[Seat] = _ONE,
        start: StartWorker = start_child,
    ) -> None:
        """Start nothing before the first ``load``.

        Args:
            sampler: of all engines.
            chat: of the policy.
            log: of the first engine; the others add their number.
            trust_remote_code: run code that ships with the model.
            keys: variables with keys; the sampler gets only its own.
            quantisation, adapters: see ``SamplerInit``.
            seats: one for each engine.
            start: starts an engine's process.
        """
        self._settings = sampler
        held = None if quantisation is None else quantisation.model_dump(mode="json")
        plain = (sampler.model_dump(mode="json"), chat.model_dump(mode="json"))
        env = dict.fromkeys(keys - key_variables(plain[0]))

        def engine(number: int, seat: Seat) -> SamplerEngine:
            own = f"_{number}" if number else ""
            evidence = str(log.with_name(f"handshake{own}.json"))
            init = SamplerInit(*plain, trust_remote_code, evidence, held, adapters)
            return SamplerEngine(sampler, init, log.with_name(f"{log.stem}{own}{log.suffix}"), seat, env, start)

        self.engines = [engine(number, seat) for number, seat in enumerate(seats)]

    def load(self, path: str, probe: str | None = None, mixed: tuple[str, str] | None = None) -> Loaded:
        """Load the policy folder ``path`` in all engines; check each against ``probe.json`` there (or in ``probe``).

        ``mixed``: folder and probe of the other model of a mixture, for engines that can mix.

        Returns the load with the largest difference, and in it those of the others.

        Raises:
            RunError: an engine failed, or does not hold these weights; names it if there are several.
        """
        asked = Load(path, probe, *(mixed or (None, None)))
        with ThreadPoolExecutor(len(self.engines)) as threads:
            loads = [threads.submit(engine.load, asked) for engine in self.engines]
        errors = {e.name: load.exception() for e, load in zip(self.engines, loads, strict=True) if load.exception()}
        # Where no machine has a place for an engine, the others do its work.
        if all(isinstance(error, NoPlaceError) for error in errors.values()) and len(errors) < len(loads):
            done = {e.name: load.result() for e, load in zip(self.engines, loads, strict=True) if not load.exception()}
            return _worst(done)
        name, error = next(iter(errors.items()))
        assert error is not None
        if len(self.engines) > 1 and isinstance(error, RunError | UserError):
            raise type(error)(f"{name}: {error}") from error
        raise error

    def sample(
        self, requests: Sequence[SampleRequest], settings: config.SamplingSettings, shard: int | None = None
    ) -> Iterator[tuple[Response, ...]]:
        """Yield the responses to each request, in order; engines work on while the caller handles an answer.

        After a failure, unanswered requests are asked of any engine; an engine that fails ``retries`` times more in a
        row, without an answer, ends the call. See also ``pipeline.sampling.sampler.Sampler.sample``.

        Args:
            requests: prompts, with their seeds.
            settings: of all samples.
            shard: number of requests that are kept together; no batch spans two shards.
        """
        size = SORTED_TOGETHER if in_blocks(self._settings) else 1
        desks = [engine.sampling(settings) for engine in self.engines]
        window = 2 * len(desks) * max(size, room_of(self._settings, settings.n))
        blocks = blocks_of(len(requests), size, shard)
        return answered(requests, blocks, desks, window=window, retries=self._settings.retries)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``pipeline.sampling.sampler.Sampler.score``; the first engine does it."""
        return self.engines[0].score(sequences)

    def ranked(self, sequences: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """See ``pipeline.sampling.sampler.Ranking.ranked``; each engine takes a part of neighbours."""
        count = len(self.engines)
        ends = [round(len(sequences) * number / count) for number in range(count + 1)]
        parts = [sequences[start:end] for start, end in pairwise(ends)]
        with ThreadPoolExecutor(count) as threads:
            asked = [threads.submit(e.ranked, part) for e, part in zip(self.engines, parts, strict=True) if part]
            return [row for part in asked for row in part.result()]

    @property
    def pids(self) -> list[int]:
        """The process ids of engines that run on this machine."""
        return [pid for engine in self.engines if (pid := engine.pid) is not None]

    def close(self) -> None:
        """End all engines and free their memory; a later ``load`` starts others."""
        self._all(SamplerEngine.close)

    def abandon(self) -> None:
        """End all engines at once; none is started again, so that another thread's call fails."""
        for engine in self.engines:
            engine.abandoned = True
        self.kill()

    def kill(self) -> None:
        """Like ``close``, but at once."""
        self._all(SamplerEngine.kill)

    def _all(self, end: Callable[[SamplerEngine], None]) -> None:
        with ThreadPoolExecutor(len(self.engines)) as threads:
            list(threads.map(end, self.engines))

    def __enter__(self) -> "SamplerPool":
        """Do nothing: engines start with the first ``load``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or kill after an error."""
        if error is None:
            self.close()
        else:
            self.kill()


def blocks_of(count: int, size: int, shard: int | None = None) -> Iterator[TaskBlock]:
    """Cut ``count`` tasks into blocks of at most ``size`` tasks, none of which spans two shards.

    >>> [(block.start, block.end) for block in blocks_of(7, 2, 3)]
    [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
    """
    every = shard or count
    for first in range(0, count, every or 1):
        last = min(first + every, count)
        for start in range(first, last, size):
            yield TaskBlock(start, min(start + size, last))


def _worst(loads: Mapping[str, Loaded]) -> Loaded:
    """Of several engines: the largest difference, the longest time, and any stale swap; and the others' loads."""
    if len(loads) == 1:
        return next(iter(loads.values()))
    name = max(loads, key=lambda engine: loads[engine].max_difference)
    stale = next((load.stale_reload for load in loads.values() if load.stale_reload), None)
    mixed = max((load.mixed_difference for load in loads.values() if load.mixed_difference is not None), default=None)
    seconds = max(load.seconds for load in loads.values())
    others = tuple(msgspec.structs.replace(load, engine=other) for other, load in loads.items() if other != name)
    return msgspec.structs.replace(
        loads[name], stale_reload=stale, seconds=seconds, mixed_difference=mixed, engine=name, others=others
    )


def load_facts(load: Loaded | None) -> dict[str, JsonValue] | None:
    """Return what a manifest holds of a load: of several engines, each one's handshake."""
    if load is None:
        return None
    facts: dict[str, JsonValue] = msgspec.structs.asdict(load)
    del facts["others"]
    if load.engine is None:
        del facts["engine"]
    return facts | ({"others": [load_facts(other) for other in load.others]} if load.others else {})
