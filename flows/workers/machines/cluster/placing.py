"""How many actors a run asks a cluster for, and of what size. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.workers.machines.cluster.connection import find_address, require_ray
from flows.workers.machines.cluster.shares import Capacity, Share, amounts, holds, require_capacity
from flows.workers.pool.cards import this_machine
from flows.workers.pool.seating import Seat, Seating, ranks_of, require_no_stages
from pipeline.config import (
    ClassifierScorer,
    PairwiseScorer,
    RayCluster,
    RunConfig,
    ScorerSettings,
    ServerSampler,
    scorers_of,
)
from pipeline.errors import UserError
from pipeline.training.distributed.launch import read_launch

ENGINE, TRAINING_TITLE, LABELLER_TITLE = "engine", "training process", "labeller"


@dataclass(frozen=True)
class Placing:
    """Actors of a run.

    Attributes:
        engines: sampling engines; a count of 0: the sampler is none of the cluster's.
        training: training processes.
        labellers: engines of each reward model; a count of 0: no reward model of the run's own labels.
        models: reward models that are there at the same time.
        stay: whether engines stay in their places while labellers work and while training runs.
    """

    engines: Share
    training: Share
    labellers: Share
    models: int
    stay: bool

    def require_capacity(self, machines: Sequence[Capacity], address: str) -> None:
        """Raise ``UserError`` if ``machines`` cannot hold what is there at the same time."""
        for together in self._together():
            require_capacity(together, machines, address)

    def fits(self, machines: Sequence[Capacity]) -> bool:
        """Whether ``machines`` can hold what is there at the same time."""
        return all(holds(together, machines) for together in self._together())

    def _together(self) -> list[list[Share]]:
        labellers = replace(self.labellers, count=self.models * self.labellers.count)
        if self.stay:
            return [[self.engines, self.training], [self.engines, labellers]]
        return [[self.engines], [self.training], [labellers]]

    def lines(self, address: str, *, as_many: bool = False) -> list[str]:
        """Say who is where; ``as_many``: there will be as many engines as fit."""
        wanted = f"as many engines as fit, each of {amounts(self.engines.bundle)}" if as_many else self.engines.text
        while_training = "stay" if self.stay else "end"
        engines = f"{wanted}, that {while_training} while training runs; " if as_many or self.engines.count else ""
        of_each = f" for each of {self.models} reward models" if self.models > 1 else ""
        labellers = f"{self.labellers.text}{of_each}; " if self.models else ""
        return [
            f"placement on the Ray cluster {address}: {engines}{labellers}{self.training.text}; each actor whole on "
            f"one machine; {'' if self.models else 'labels, '}judges and accounts on this one"
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
    models, labellers = models_at_once(config), config.labelling.engines
    of_each = 0 if not models else 1 if labellers == "auto" else labellers
    return Placing(
        Share(ENGINE, count, cores, ranks if on_cards else 0),
        Share(TRAINING_TITLE, processes, settings.training_cpus, cards),
        Share(LABELLER_TITLE, of_each, settings.engine_cpus, int(on_cards)),
        models,
        stay or (config.sampler.keep_warm == "auto" and not on_cards),
    )


def placed(config: RunConfig, settings: RayCluster, machines: Sequence[Capacity], address: str) -> Placing:
    """Decide on the actors of ``config`` on ``machines``.

    Raises:
        UserError: they have no room for them.
    """
    found = as_fits(config, settings, machines)
    found.require_capacity(machines, address)
    return found


def as_fits(config: RunConfig, settings: RayCluster, machines: Sequence[Capacity]) -> Placing:
    """Decide on the actors of ``config``; where ``machines`` have no room for them, as few as it allows."""
    on_cards = any(machine.get("GPU", 0.0) > 0 for machine in machines)
    asked = asked_of(config, settings, on_cards=on_cards)
    if not on_cards:
        require_no_stages(config)
    if sampled_on(config) and config.sampler.engines == "auto":
        share = replace(asked.engines, count=1)
        most = sum(_times(share, machine) for machine in machines)
        # Without cards an engine uses all cores of its machine that it gets.
        most = max(1, most if on_cards else min(most, len(machines)))
        fitting = (
            count for count in range(most, 0, -1) if replace(asked, engines=replace(share, count=count)).fits(machines)
        )
        asked = replace(asked, engines=replace(share, count=next(fitting, 1)))
    return with_labellers(config, asked, machines)


def with_labellers(config: RunConfig, asked: Placing, machines: Sequence[Capacity]) -> Placing:
    """Let labellers be as many as fit beside the other actors, if the config leaves their number open."""
    one = asked.labellers
    if not (asked.models and one.cards and config.labelling.engines == "auto"):
        return asked
    most = sum(_times(one, machine) for machine in machines) // asked.models
    found = (replace(asked, labellers=replace(one, count=count)) for count in range(most, 1, -1))
    return next((placing for placing in found if placing.fits(machines)), asked)


def models_at_once(config: RunConfig) -> int:
    """Return how many reward models of the run's own a stage has at the same time: those of one labeller."""
    second = None if config.gate is None else config.gate.second
    labellers = [labeller for labeller in (config.scorer, second) if labeller is not None]
    return max([int(config.discriminator is not None), *map(_local_models, labellers)])


def _local_models(settings: ScorerSettings) -> int:
    return sum(isinstance(scorer, ClassifierScorer | PairwiseScorer) for _, scorer in scorers_of(settings))


def seating_on(config: RunConfig, placing: Placing) -> Seating:
    """Return seats for the engines; the trainer's is this machine, for all that is not on the cluster."""
    here = this_machine()
    rest = Seat("trainer", here.cards, here.cores if not here.cards else ())
    return Seating(config.placement, seats_on(placing.engines, ranks_of(config)) or (Seat(ENGINE),), rest)


def seats_on(share: Share, ranks: int = 1) -> tuple[Seat, ...]:
    """Return a seat for each actor of ``share``; ``ranks``: see ``Seat``."""
    # The cards' numbers are the cluster's affair; that there are some decides how an engine is started.
    cards = tuple(map(str, range(share.cards)))
    names = [f"{share.title} {number}" if share.count > 1 else share.title for number in range(share.count)]
    return tuple(Seat(name, cards, ranks=ranks, alone=True) for name in names)


def sampled_on(config: RunConfig) -> bool:
    """Whether engines are actors: a server of the user's is nobody's, and a run of pairs alone may sample nothing."""
    samples = config.mode == "iterative" or config.prompts is not None
    return samples and not (isinstance(config.sampler, ServerSampler) and config.sampler.base_url is not None)


def _times(share: Share, machine: Capacity) -> int:
    return min(int(machine.get(name, 0.0) // size) for name, size in share.bundle.items())
