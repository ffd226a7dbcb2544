"""How many actors a run asks a cluster for, and of what size. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.workers.machines.cluster.connection import find_address, require_ray
from flows.workers.machines.cluster.shares import Capacity, Share, amounts, holds, require_capacity
from flows.workers.pool.cards import this_machine
from flows.workers.pool.seating import Seat, Seating, ranks_of
from pipeline.config import RayCluster, RunConfig, ServerSampler
from pipeline.errors import UserError
from pipeline.training.distributed.launch import read_launch

ENGINE, TRAINING_TITLE = "engine", "training process"


@dataclass(frozen=True)
class Placing:
    """Actors of a run.

    Attributes:
        engines: sampling engines; a count of 0: the sampler is none of the cluster's.
        training: training processes.
        stay: whether engines stay in their places while training runs.
    """

    engines: Share
    training: Share
    stay: bool

    def require_capacity(self, machines: Sequence[Capacity], address: str) -> None:
        """Raise ``UserError`` if ``machines`` cannot hold what is there at the same time."""
        for together in self._together():
            require_capacity(together, machines, address)

    def fits(self, machines: Sequence[Capacity]) -> bool:
        """Whether ``machines`` can hold what is there at the same time."""
        return all(holds(together, machines) for together in self._together())

    def _together(self) -> list[list[Share]]:
        return [[self.engines, self.training]] if self.stay else [[self.engines], [self.training]]

    def lines(self, address: str, *, as_many: bool = False) -> list[str]:
        """Say who is where; ``as_many``: there will be as many engines as fit."""
        wanted = f"as many engines as fit, each of {amounts(self.engines.bundle)}" if as_many else self.engines.text
        while_training = "stay" if self.stay else "end"
        engines = f"{wanted}, that {while_training} while training runs; " if as_many or self.engines.count else ""
        return [
            f"placement on the Ray cluster {address}: {engines}{self.training.text}; each actor whole on one machine; "
            "labels, judges and accounts on this one"
        ]


def require_cluster(config: RunConfig) -> None:
    """Raise ``UserError`` if the cluster of ``config`` does not answer, or cannot be asked; does not connect."""
    if isinstance(config.cluster, RayCluster):
        require_ray()
        find_address(config.cluster)
        asked_of(config, config.cluster, on_cards=False)


def placing_lines(config: RunConfig) -> list[str]:
    """Say who will be where on the cluster of ``config``; nothing if it has none."""
    if not isinstance(config.cluster, RayCluster):
        return []
    asked = asked_of(config, config.cluster, on_cards=False)
    cards = replace(asked.engines, cards=ranks_of(config), cpus=config.cluster.engine_cpus)
    training = config.accelerate is None or asked_of(config, config.cluster, on_cards=True).training.cards
    as_many = sampled_on(config) and config.sampler.engines == "auto"
    return [
        *asked.lines(config.cluster.address, as_many=as_many),
        f"  where the cluster has cards: {amounts(cards.bundle)} for each engine, which ends while training runs "
        f"unless it is kept; {'1 card' if training else 'none'} for each training process",
    ]


def asked_of(config: RunConfig, settings: RayCluster, *, on_cards: bool, engines: int = 0) -> Placing:
    """Return what ``config`` asks of a cluster, with this number of ``engines``, or the config's.

    Raises:
        UserError: the accelerate config is for another kind of start.
    """
    launch, wanted, ranks = read_launch(config), config.sampler.engines, ranks_of(config)
    if launch is not None and launch.machines > 1:
        raise UserError(
            f"{config.accelerate}: num_machines: {launch.machines}, but with cluster.kind: ray the cluster places the "
            "processes; allowed: 1, with num_processes of all machines together"
        )
    count = 0 if not sampled_on(config) else engines or (0 if wanted == "auto" else wanted)
    cores = settings.engine_cpus if on_cards else max(settings.engine_cpus, ranks)
    processes = 1 if launch is None else launch.processes
    cards = int(on_cards and not (launch is not None and launch.cpu))
    stay = config.placement == "split" or config.sampler.keep_warm == "always"
    return Placing(
        Share(ENGINE, count, cores, ranks if on_cards else 0),
        Share(TRAINING_TITLE, processes, settings.training_cpus, cards),
        stay or (config.sampler.keep_warm == "auto" and not on_cards),
    )


def placed(config: RunConfig, settings: RayCluster, machines: Sequence[Capacity], address: str) -> Placing:
    """Decide on the actors of ``config`` on ``machines``.

    Raises:
        UserError: they have no room for them.
    """
    on_cards = any(machine.get("GPU", 0.0) > 0 for machine in machines)
    asked = asked_of(config, settings, on_cards=on_cards)
    if sampled_on(config) and config.sampler.engines == "auto":
        share = replace(asked.engines, count=1)
        most = sum(_times(share, machine) for machine in machines)
        # Without cards an engine uses all cores of its machine that it gets.
        most = max(1, most if on_cards else min(most, len(machines)))
        fitting = (
            count for count in range(most, 0, -1) if replace(asked, engines=replace(share, count=count)).fits(machines)
        )
        asked = replace(asked, engines=replace(share, count=next(fitting, 1)))
    asked.require_capacity(machines, address)
    return asked


def seating_on(config: RunConfig, placing: Placing) -> Seating:
    """Return seats for the engines; the trainer's is this machine, for all that is not on the cluster."""
    here = this_machine()
    rest = Seat("trainer", here.cards, here.cores if not here.cards else ())
    many, cards = placing.engines.count > 1, placing.engines.cards
    # The cards' numbers are the cluster's affair; that there are some decides how an engine is started.
    seats = [
        Seat(
            f"{ENGINE} {number}" if many else ENGINE, tuple(map(str, range(cards))), ranks=ranks_of(config), alone=True
        )
        for number in range(placing.engines.count)
    ]
    return Seating(config.placement, tuple(seats) or (Seat(ENGINE),), rest)


def sampled_on(config: RunConfig) -> bool:
    """Whether engines are actors: a server of the user's is nobody's, and a run of pairs alone may sample nothing."""
    samples = config.mode == "iterative" or config.prompts is not None
    return samples and not (isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None)


def _times(share: Share, machine: Capacity) -> int:
    return min(int(machine.get(name, 0.0) // size) for name, size in share.bundle.items())
