"""A run's part of a cluster: engines and training processes; everything else stays on the driver's machine."""

import os
from collections.abc import Mapping
from pathlib import Path

from flows.workers.machines.cluster.actors import start_actor, start_trainer
from flows.workers.machines.cluster.connection import Cluster
from flows.workers.machines.cluster.placing import as_fits, placed, sampled_on, seating_on, seats_on
from flows.workers.machines.cluster.remote import RemoteChild
from flows.workers.messages import P, Request, Service, StageProgress, TrainerInit
from flows.workers.patience import further_seconds
from flows.workers.pool.sampler_engine import start_child
from flows.workers.pool.seating import Seat
from flows.workers.pool.worker import Worker
from pipeline.config import RayCluster, RunConfig
from pipeline.safe_text import is_secret_variable, key_variables

# Stages that ask nothing of a labeller and write to no account.
ON_RANKS = frozenset({"policy", "reference", "advantages"})


class Crew:
    """Actors of one run."""

    def __init__(self, settings: RayCluster, config: RunConfig, root: Path) -> None:
        """Connect to the cluster; check its machines, and that they can hold the run. Raises ``UserError``."""
        self._config, self._root = config, root
        self._cluster = Cluster(settings, root, hidden_from_actors(config))
        try:
            self.placing = placed(config, settings, self._cluster.machines, self._cluster.address)
        except BaseException:
            self.close()
            raise
        self.seating = seating_on(config, self.placing)

    @property
    def lines(self) -> list[str]:
        """Say who is where."""
        return self.placing.lines(self._cluster.address)

    def start(
        self,
        service: Service[P],
        init: Request,
        log: Path,
        start_timeout: float,
        seat: Seat,
        env: Mapping[str, str | None],
    ) -> Worker[P]:
        """See ``StartWorker``: an actor, or a child here if the seat is none of the cluster's."""
        if not sampled_on(self._config):
            return start_child(service, init, log, start_timeout, seat, env)
        return start_actor(self._cluster, self.placing.engines, service, init, log, start_timeout, env)

    def trains(self, round_: int, name: str) -> bool:
        """Whether training processes run the stage; a start policy that is not trained is only looked at."""
        return name in ON_RANKS and (name != "policy" or round_ > 0 or self._config.warm_start is not None)

    def trainer(self) -> RemoteChild[StageProgress]:
        """Prepare the training processes."""
        init = TrainerInit(str(self._root), self._config.model_dump(mode="json"))
        more = further_seconds(self._config)
        starting, stalling = self._config.sampler.start_timeout + more, self._config.training.stall_timeout + more
        log = self._root / "logs" / "training.log"
        return start_trainer(self._cluster, self.placing.training, init, log, starting, stalling)

    def close(self) -> None:
        """Disconnect; actors that are left end."""
        self._cluster.close()


class LabelCrew:
    """A cluster as the process sees it that labels with a run's reward models: connected at first use."""

    def __init__(self, settings: RayCluster, config: RunConfig, root: Path) -> None:
        """Connect to nothing yet."""
        self._settings, self._config, self._root = settings, config, root
        self._cluster: Cluster | None = None

    def seats(self) -> tuple[Seat, ...]:
        """Return a seat for each engine of a model. Raises ``UserError`` if the cluster does not answer."""
        self._share = as_fits(self._config, self._settings, self._connected().machines).labellers
        return seats_on(self._share)

    def start(
        self,
        service: Service[P],
        init: Request,
        log: Path,
        start_timeout: float,
        seat: Seat,
        env: Mapping[str, str | None],
    ) -> Worker[P]:
        """See ``StartWorker``."""
        return start_actor(self._connected(), self._share, service, init, log, start_timeout, env)

    def __enter__(self) -> "LabelCrew":
        return self

    def __exit__(self, *error: object) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def _connected(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(self._settings, self._root, hidden_from_actors(self._config), joins=True)
        return self._cluster


def hidden_from_actors(config: RunConfig) -> frozenset[str]:
    """Return the names of variables with keys, of this process and of ``config``."""
    secret = {name for name in os.environ if is_secret_variable(name) and not name.startswith("RAY_")}
    return frozenset(secret) | key_variables(config.model_dump(mode="json"))
