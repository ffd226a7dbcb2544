"""Starts services as actors of a cluster: engines and labellers' models one by one, training processes together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.workers.machines.cluster.connection import Cluster
from flows.workers.machines.cluster.host import ChildHost
from flows.workers.machines.cluster.remote import RemoteChild
from flows.workers.machines.cluster.shares import Share
from flows.workers.messages import TRAINER, P, Request, Service, StageProgress, TrainerInit


def start_actor(
    cluster: Cluster,
    share: Share,
    service: Service[P],
    init: Request,
    log: Path,
    start_timeout: float,
    env: Mapping[str, str | None],
) -> RemoteChild[P]:
    """Start ``service`` in a child process of an actor that has ``share`` of a machine, and send it ``init``.

    Raises:
        NoPlaceError: no machine has such a place, or none became free.
        RunError: it did not answer within ``start_timeout`` seconds.
        UserError: its machine lacks something, or ``init`` has a mistake.
    """
    place = cluster.place(share)
    log.parent.mkdir(parents=True, exist_ok=True)
    host = cluster.actor(ChildHost, share, place)
    child = RemoteChild(service, host, log, cluster.settings.lost_after, place.release)
    child.begin(service, init, start_timeout, dict(env))
    return child


def start_trainer(
    cluster: Cluster, share: Share, init: TrainerInit, log: Path, start_timeout: float, stall_timeout: float
) -> RemoteChild[StageProgress]:
    """Prepare ``share.count`` training processes, each with its ``share`` of a machine; they start with each stage."""
    from flows.workers.machines.cluster.ranks import Ranks, TrainHost

    ranks = Ranks(
        init,
        str(log),
        start_timeout,
        stall_timeout,
        share.count,
        int(share.cpus),
        share.cards,
        cluster.settings.interface,
        cluster.environment(),
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    host: Any = cluster.actor(TrainHost, None, None, ranks)
    return RemoteChild(TRAINER, host, log, cluster.settings.lost_after, lambda: None, limited=True)
