"""A reward model in engines of its own: each a process in its seat, that computes parts of what is labelled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import compress, count
from pathlib import Path

from pydantic import JsonValue

from flows.workers.messages import (
    LABELLER,
    ComputePart,
    Describe,
    Described,
    LabellerInit,
    LabelProgressed,
    PartComputed,
    R,
    TakenUp,
    TakeUp,
)
from flows.workers.patience import further_seconds
from flows.workers.pool.cards import this_machine
from flows.workers.pool.dispatch import TaskBlock, Tray, answered
from flows.workers.pool.sampler_engine import start_child
from flows.workers.pool.seating import Seat, cut, seating_of
from flows.workers.pool.worker import NoPlaceError, StartWorker, Worker
from pipeline.config import RayCluster, RunConfig
from pipeline.errors import RunError, UserError
from pipeline.safe_text import key_variables
from pipeline.types import Group
from pipeline.types.counts import number_of
from reward_models.answers.parts import LocalModel, OnValue, OpenPool, PartValues

# Failures in a row, of one engine or at one part, that are followed by another attempt.
_RETRIES = 2


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Seconds that an engine may take to start, and to compute a part."""

    start: float
    part: float


class LabelEngine:
    """One process; a failure ends it, and the next call starts another."""

    def __init__(
        self,
        init: LabellerInit,
        log: Path,
        seat: Seat,
        env: Mapping[str, str | None],
        times: EngineTimes,
        start: StartWorker,
    ) -> None:
        """Start nothing before the first call; ``env``: variables to set, or to remove (None)."""
        self.name = seat.name
        self._init, self._log, self._seat, self._times, self._start = init, log, seat, times, start
        self._env = env
        self._worker: Worker[LabelProgressed] | None = None
        # The groups that its parts are of; those that the process has taken up.
        self._groups: tuple[Group, ...] = ()
        self._taken: tuple[Group, ...] | None = None

    def describe(self) -> Described:
        """Return what the loaded model tells of itself; a process that dies or is late is replaced."""
        return self._surely(lambda: self._running().call(Describe(), Described, self._times.part))

    def take_up(self, groups: tuple[Group, ...]) -> TakenUp:
        """Take up ``groups``; a process that dies or is late is replaced."""
        return self._surely(lambda: self._take(groups))

    def of(self, groups: tuple[Group, ...]) -> "LabelEngine":
        """Compute parts of ``groups`` next."""
        self._groups = groups
        return self

    def answers(self, tray: Tray[int, PartValues]) -> Iterator[PartValues]:
        """See ``Desk``."""
        worker = self._running()
        if self._taken is not self._groups:
            self._take(self._groups)
        for number in tray.take(1):
            yield worker.call(ComputePart(number), PartComputed, self._times.part).values

    @property
    def pid(self) -> int | None:
        """The process id; None without a process on this machine."""
        return None if self._worker is None else self._worker.pid

    def close(self) -> None:
        """End the process and free its memory."""
        worker, self._worker, self._taken = self._worker, None, None
        if worker is not None:
            worker.close()

    def kill(self) -> None:
        """Like ``close``, but at once."""
        worker, self._worker, self._taken = self._worker, None, None
        if worker is not None:
            worker.kill()

    def _surely(self, ask: Callable[[], R]) -> R:
        for left in range(_RETRIES, -1, -1):
            try:
                return ask()
            except NoPlaceError:
                raise
            except RunError:
                self.kill()
                if left == 0:
                    raise
        raise AssertionError("unreachable")

    def _running(self) -> Worker[LabelProgressed]:
        if self._worker is None or not self._worker.alive:
            self._taken = None
            self._worker = self._start(LABELLER, self._init, self._log, self._times.start, self._seat, self._env)
        return self._worker

    def _take(self, groups: tuple[Group, ...]) -> TakenUp:
        found = self._running().call(TakeUp(groups), TakenUp, self._times.part)
        self._taken = groups
        return found


class LabelPool:
    """Engines that hold the same reward model; see ``EnginePool``."""

    def __init__(
        self,
        model: LocalModel,
        log: Path,
        seats: Sequence[Seat],
        env: Mapping[str, str | None],
        times: EngineTimes,
        start: StartWorker = start_child,
    ) -> None:
        """Start all engines; ``log``: of the first one, the others add their number.

        Where no machine has a place for an engine, the others do its work.

        Raises:
            UserError: the model cannot be loaded.
            RunError: an engine does not start.
        """
        self._model = model
        rendering = None if model.rendering is None else {**model.rendering}
        plain = (model.kind, {**model.settings}, rendering, model.field)

        def engine(number: int, seat: Seat) -> LabelEngine:
            init = LabellerInit(*plain, () if seat.alone else seat.cores)
            own = log.with_name(f"{log.stem}_{number}{log.suffix}") if number else log
            return LabelEngine(init, own, seat, env, times, start)

        self.engines = [engine(number, seat) for number, seat in enumerate(seats)]
        try:
            told = self._described()
        except BaseException:
            self.close()
            raise
        self.described: Mapping[str, JsonValue] = told[0].version
        self.facts: dict[str, JsonValue] = told[0].facts

    def values(self, groups: Sequence[Group], on_value: OnValue | None = None) -> list[float | None]:
        """See ``EnginePool``."""
        found: list[float | None] = [None] * self._model.places(groups)
        if not found:
            return found
        sent = tuple(groups) if self._model.reads_tokens else tuple(map(_without_tokens, groups))
        taken = self._taken_up(sent)
        self._count(taken.facts)
        numbers = range(taken.parts)
        blocks = (TaskBlock(number, number + 1) for number in numbers)
        desks = [engine.of(sent) for engine in self.engines]
        for values in answered(numbers, blocks, desks, window=max(1, taken.parts), retries=_RETRIES):
            for place, value in values:
                found[place] = value
                if on_value is not None:
                    on_value(place, value)
        return found

    def close(self) -> None:
        """End all engines and free their memory."""
        with ThreadPoolExecutor(len(self.engines)) as threads:
            list(threads.map(LabelEngine.close, self.engines))

    def __enter__(self) -> "LabelPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _described(self) -> list[Described]:
        with ThreadPoolExecutor(len(self.engines)) as threads:
            asked = [threads.submit(engine.describe) for engine in self.engines]
        placed = [not isinstance(one.exception(), NoPlaceError) for one in asked]
        if any(placed):
            self.engines, asked = [*compress(self.engines, placed)], [*compress(asked, placed)]
        return [one.result() for one in asked]

    def _taken_up(self, groups: tuple[Group, ...]) -> TakenUp:
        """Have the first engine that has a place take up ``groups``."""
        for engine in self.engines[:-1]:
            with suppress(NoPlaceError):
                return engine.take_up(groups)
        return self.engines[-1].take_up(groups)

    def _count(self, facts: Mapping[str, JsonValue]) -> None:
        for name, value in facts.items():
            before = self.facts.get(name)
            counts = isinstance(value, int) and isinstance(before, int)
            self.facts[name] = before + value if counts else value  # type: ignore[operator]


def label_seats(config: RunConfig, rest: Seat) -> tuple[Seat, ...]:
    """Return a seat for each engine of a local reward model, on ``rest``: what the trainer has.

    A cluster's engines are placed there; what is planned here is one.

    Raises:
        UserError: there are too few cards or cores; says what is allowed.
    """
    wanted = config.labelling.engines
    most, unit = (len(rest.cards), "card") if rest.cards else (len(rest.cores), "core")
    if isinstance(config.cluster, RayCluster):
        wanted = 1
    elif wanted == "auto":
        wanted = most if rest.cards else 1
    if wanted > most:
        raise UserError(
            f"labelling.engines: {number_of(wanted, 'engine needs', 'engines need')} {number_of(wanted, unit)}, and "
            f"labellers have {rest.where}; allowed: 1 to {most}, or auto"
        )
    return cut(rest, wanted, "labeller")


def rest_here(config: RunConfig) -> Seat:
    """Return what the trainer's process has, seen from inside it: it is shown its own cards, but all cores."""
    machine = this_machine()
    return Seat("trainer", machine.cards) if machine.cards else seating_of(config, machine).rest


# Says where a model's engines are, and how they start.
Places = Callable[[], tuple[Sequence[Seat], StartWorker]]


@contextmanager
def label_engines(config: RunConfig, root: Path) -> Iterator[OpenPool | None]:
    """Yield what starts the engines of a local reward model of the run; None: models run in this process.

    They end with the block. Raises ``UserError`` if there are too few cards or cores.
    """
    with ExitStack() as opened:
        places: Places | None
        if isinstance(config.cluster, RayCluster):
            places = opened.enter_context(_on_cluster(config.cluster, config, root))
        else:
            places = _here(config)
        yield None if places is None else _opener(config, root, places, opened)


def _here(config: RunConfig) -> Places | None:
    seats = label_seats(config, rest_here(config))
    return None if len(seats) == 1 else lambda: (seats, start_child)


@contextmanager
def _on_cluster(settings: RayCluster, config: RunConfig, root: Path) -> Iterator[Places]:
    from flows.workers.machines.cluster.crew import LabelCrew

    with LabelCrew(settings, config, root) as crew:
        yield lambda: (crew.seats(), crew.start)


def _opener(config: RunConfig, root: Path, places: Places, opened: ExitStack) -> OpenPool:
    patience = further_seconds(config)
    times = EngineTimes(config.sampler.start_timeout + patience, config.labelling.engine_timeout + patience)
    env = dict.fromkeys(key_variables(config.model_dump(mode="json")))
    numbers = count()

    def open_pool(model: LocalModel) -> LabelPool:
        number, (seats, start) = next(numbers), places()
        log = root / "logs" / f"labeller{f'_{chr(97 + number)}' if number else ''}.log"
        return opened.enter_context(LabelPool(model, log, seats, env, times, start))

    return open_pool


def _without_tokens(group: Group) -> Group:
    """Return what a model of texts reads of ``group``."""
    texts = tuple(replace(response, token_ids=(), logprobs=(), rows=()) for response in group.responses)
    return Group(group.prompt, (), texts)
