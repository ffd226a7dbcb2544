"""Which cards or cores each part of a run gets: one plan that engines, labellers and the trainer read. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.workers.pool.cards import VISIBLE, Machine, is_slice, this_machine
from flows.workers.pool.waiting import CPU_BIND, THREADS, for_neighbours
from pipeline.config import DiffusersSampler, RayCluster, RunConfig, ServerSampler, TransformersSampler
from pipeline.errors import UserError
from pipeline.training.distributed.launch import read_launch
from pipeline.types.counts import number_of


@dataclass(frozen=True, slots=True)
class Seat:
    """What one worker has of a machine.

    Attributes:
        name: for messages, such as ``engine 1``.
        cards: entries for ``CUDA_VISIBLE_DEVICES``; none on a machine without cards.
        cores: numbers of CPU cores, where there are no cards.
        ranks: processes that compute one model together; each has its own part of the cards or cores.
        alone: whether it has all that there is, so that nothing needs to be set.
        wanted: whether another part of the run computes on the same cores at the same time.
    """

    name: str
    cards: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    ranks: int = 1
    alone: bool = True
    wanted: bool = False

    @property
    def where(self) -> str:
        """Its cards or cores, for people."""
        kind, entries = ("card", self.cards) if self.cards else ("core", tuple(map(str, self.cores)))
        return f"{kind}{'s' * (len(entries) != 1)} {','.join(entries)}"

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str | None]:
        """Return the variables that keep a child in its seat; what the user set for a lone worker stays."""
        if self.cards:
            return {} if self.alone else {VISIBLE: ",".join(self.cards)}
        waiting = for_neighbours(given) if self.wanted else {}
        if self.alone and (self.ranks == 1 or CPU_BIND in given):
            return {**waiting}
        threads = {THREADS: str(max(1, len(self.cores) // self.ranks))}
        parts = (part.cores for part in cut(self, self.ranks, self.name))
        return {CPU_BIND: "|".join(",".join(map(str, cores)) for cores in parts), **threads, **waiting}


def cut(seat: Seat, count: int, name: str, each: int | None = None, ranks: int = 1) -> tuple[Seat, ...]:
    """Cut ``seat`` into ``count`` seats, ``name`` 0 and so on.

    Args:
        seat: with at least ``count`` cards, or cores if it has no cards.
        count: of seats.
        name: of the seats, without their number.
        each: cards or cores of each seat; default: all, as evenly as possible.
        ranks: of each seat.
    """
    units: Sequence[str | int] = seat.cards or seat.cores
    share, more = (each, 0) if each is not None else divmod(len(units), count)
    found, start = [], 0
    for number in range(count):
        end = start + share + (number < more)
        cards, cores = (seat.cards[start:end], ()) if seat.cards else ((), seat.cores[start:end])
        alone = seat.alone and end - start == len(units)
        found.append(Seat(f"{name} {number}" if count > 1 else name, cards, cores, ranks, alone, seat.wanted))
        start = end
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Seating:
    """Who has which cards or cores.

    Attributes:
        kind: ``colocated``: engines and trainer have the same ones, in turn. ``split``: each has its own.
        engines: a seat for each sampling engine.
        rest: what the trainer and local labellers have.
    """

    kind: Literal["colocated", "split"]
    engines: tuple[Seat, ...]
    rest: Seat

    def lines(self, *, stay: bool) -> list[str]:
        """Say who is where; ``stay``: whether engines stay in memory while training runs."""
        shown = "; ".join(f"{seat.name}: {seat.where}" for seat in self.engines)
        engines = number_of(len(self.engines), "engine")
        while_training = "stay" if stay else "end"
        if len(self.engines) == 1:
            while_training += "s"
        return [
            f"placement {self.kind}: {engines} ({shown}) {while_training} while training runs; "
            f"trainer and labellers: {self.rest.where}"
        ]


def seating_of(config: RunConfig, machine: Machine | None = None) -> Seating:
    """Place the parts of ``config`` on ``machine``, by default this one.

    Raises:
        UserError: there are too few cards or cores, or stages without cards; says what is allowed.
    """
    machine = this_machine() if machine is None else machine
    wanted = config.training.lag > 0 and config.placement == "colocated"
    whole = Seat("trainer", machine.cards, machine.cores if not machine.cards else (), wanted=wanted)
    ranks = ranks_of(config)
    # A cluster's engines are placed there; what is planned or measured here is one.
    elsewhere = isinstance(config.cluster, RayCluster)
    if elsewhere or (isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None):
        return Seating("colocated", (Seat("engine", whole.cards, whole.cores),), whole)
    if not machine.cards:
        require_no_stages(config)
    units: Sequence[str | int] = whole.cards or whole.cores
    kept = _for_trainer(config, machine) if config.placement == "split" else 0
    count = _count(config, len(units) - kept, ranks, bool(machine.cards), kept)
    if config.placement == "colocated":
        # Cards make an engine faster only as its ranks; cores do as threads.
        each = ranks if machine.cards else None
        return Seating("colocated", cut(whole, count, "engine", each, ranks), whole)
    used = count * ranks if machine.cards else len(units) - kept
    first, second = (Seat(name, *_part(whole, piece), alone=False) for name, piece in _pieces(used, len(units)))
    each = ranks if machine.cards else None
    return Seating("split", cut(first, count, "engine", each, ranks), second)


def ranks_of(config: RunConfig) -> int:
    """Return the number of cards that compute one engine's model together."""
    if isinstance(config.sampler, TransformersSampler | DiffusersSampler):
        return 1
    return config.sampler.tensor_parallel_size * config.sampler.pipeline_parallel_size


def require_no_stages(config: RunConfig) -> None:
    """Raise ``UserError`` if an engine without cards would be several stages, one after the other."""
    if isinstance(config.sampler, TransformersSampler | DiffusersSampler):
        return
    stages = config.sampler.pipeline_parallel_size
    if stages > 1:
        # The second stage of 0.32.0 fails at its first tokens: without cards it has no room for what the first sends.
        raise UserError(
            f"sampler.pipeline_parallel_size: {stages}, but there is no card, and vLLM's stages need cards; allowed on "
            "a CPU: 1, and tensor_parallel_size"
        )


def _pieces(used: int, total: int) -> tuple[tuple[str, slice], tuple[str, slice]]:
    return ("engine", slice(0, used)), ("trainer", slice(used, total))


def _part(seat: Seat, piece: slice) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return seat.cards[piece], seat.cores[piece]


def _for_trainer(config: RunConfig, machine: Machine) -> int:
    """Cards or cores that the trainer needs of its own."""
    launch = read_launch(config)
    if launch is None:
        return 1
    return 0 if machine.cards and launch.cpu else launch.on_each


def _count(config: RunConfig, free: int, ranks: int, on_cards: bool, kept: int) -> int:
    """Number of engines. ``free``: cards or cores for them; ``kept``: those of the trainer alone."""
    wanted, unit = config.sampler.engines, "card" if on_cards else "core"
    most = free // ranks
    of_product = " (tensor_parallel_size x pipeline_parallel_size)"
    of_each = f" of {ranks} {unit}s each{of_product}" if ranks > 1 else ""
    seen = f"this process sees {number_of(free + kept, unit)}"
    beside = f", {kept} of them for the trainer (placement: split)" if kept else ""
    if most < 1:
        fewer = f"tensor_parallel_size x pipeline_parallel_size of at most {max(free, 1)}"
        raise UserError(
            f"sampler.engines: {wanted}: an engine needs {number_of(ranks, unit)}"
            f"{of_product if ranks > 1 else ''}, and {seen}{beside}; "
            f"allowed: {'placement: colocated' if kept and (free + kept) // ranks else fewer}"
        )
    if wanted == "auto":
        # On a CPU, one engine uses all cores.
        return most if on_cards else 1
    if wanted > most:
        need = f"need {number_of(wanted * ranks, unit)}"
        raise UserError(
            f"sampler.engines: {number_of(wanted, 'engine')}{of_each} {need}, and {seen}{beside}; allowed: "
            f"1 to {most}, or auto"
        )
    return wanted


def require_whole_cards(seating: Seating) -> None:
    """Raise ``UserError`` for an engine on several parts of cards (MIG), which CUDA never shows together."""
    for seat in seating.engines:
        if len(seat.cards) > 1 and any(map(is_slice, seat.cards)):
            raise UserError(
                f"sampler.tensor_parallel_size: {seat.name} would have {seat.where}, but CUDA shows a process "
                "at most one MIG device; allowed: tensor_parallel_size: 1 and pipeline_parallel_size: 1"
            )
