"""What a run needs of a cluster: actors, each whole on one machine, with its cores and cards. Torch-free."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.types.counts import number_of

# Cores and cards, as Ray names them.
Capacity = dict[str, float]


@dataclass(frozen=True)
class Share:
    """``count`` actors of a kind, each with ``cpus`` cores and ``cards`` accelerators of one machine."""

    title: str
    count: int
    cpus: float
    cards: int = 0

    @property
    def bundle(self) -> Capacity:
        """One actor's resources, as Ray names them."""
        return {"CPU": float(self.cpus), **({"GPU": float(self.cards)} if self.cards else {})}

    @property
    def text(self) -> str:
        """Such as ``2 engines of 4 cores and 2 cards``."""
        plural = "" if self.count == 1 else "es" if self.title.endswith("s") else "s"
        return f"{self.count} {self.title}{plural} of {amounts(self.bundle)}"


def amounts(resources: Capacity) -> str:
    """Return cores and cards in words."""
    cores, cards = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    said = [number_of(cores, "core")]
    return " and ".join([*said, number_of(cards, "card")] if cards else said)


def holds(shares: Sequence[Share], machines: Iterable[Capacity]) -> bool:
    """Whether a way is found to place ``shares`` at the same time on ``machines``, all free."""
    return _homeless(shares, machines) is None


def require_capacity(shares: Sequence[Share], machines: Iterable[Capacity], address: str) -> None:
    """Raise ``UserError`` if ``machines``, all free, do not hold ``shares`` at the same time."""
    there = [*machines]
    share = _homeless(shares, there)
    if share is None:
        return
    raise UserError(
        f"cluster: {address} cannot hold this run: no machine is left for one {share.title} of "
        f"{amounts(share.bundle)}\n  needed, each on one machine: {'; '.join(s.text for s in shares if s.count)}\n"
        f"  machines: {', '.join(map(amounts, there)) or 'none'}\n"
        "  ask for less (sampler.engines, sampler.tensor_parallel_size, labelling.engines, num_processes of the "
        "accelerate config, cluster.engine_cpus, cluster.training_cpus) or start more machines"
    )


def _homeless(shares: Sequence[Share], machines: Iterable[Capacity]) -> Share | None:
    """Return a share for which no machine is left; None: all have a place.

    The largest are placed first. Of the machines with room each takes the fullest, or the emptiest, or the first; for
    actors of one size any of these finds a place if there is one.
    """
    there = [*machines]
    orders: list[Callable[[Capacity], tuple[float, ...]]] = [
        lambda machine: (machine.get("GPU", 0.0), machine.get("CPU", 0.0)),
        lambda machine: (-machine.get("GPU", 0.0), -machine.get("CPU", 0.0)),
        lambda machine: (),
    ]
    missing = [_left_over(shares, there, order) for order in orders]
    return None if None in missing else missing[0]


def _left_over(
    shares: Sequence[Share], machines: Sequence[Capacity], order: Callable[[Capacity], tuple[float, ...]]
) -> Share | None:
    """Return the first share for which no machine is left; None: all have a place."""
    left = [dict(machine) for machine in machines]
    actors = [share for share in shares for _ in range(share.count)]
    for share in sorted(actors, key=lambda share: (-share.cards, -share.cpus)):
        fitting = [one for one in left if all(one.get(name, 0.0) >= size for name, size in share.bundle.items())]
        if not fitting:
            return share
        chosen = min(fitting, key=order)
        for name, size in share.bundle.items():
            chosen[name] -= size
    return None
