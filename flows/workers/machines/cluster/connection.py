"""The driver's connection to a Ray cluster: opened and checked before anything is loaded, then a source of actors."""

import contextlib
import importlib.util
import logging
import os
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.workers.machines.cluster.home import Home, home_of, mismatch
from flows.workers.machines.cluster.shares import Capacity, Share, amounts, holds
from flows.workers.pool.worker import NoPlaceError
from pipeline.config import RayCluster
from pipeline.errors import UserError
from pipeline.types.counts import number_of

# What the extra installs.
EXTRA = ("ray", "tensorboardX")
PROBE_SECONDS = 5.0
# Of Ray's own processes: no statistics to Ray's makers, no metrics, no change of the working folder.
RAY_SWITCHES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
LOOPBACK = ("localhost", "127.0.0.1")


def require_ray() -> None:
    """Raise ``UserError`` if Ray is not installed."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        raise UserError(
            "cluster.kind: ray needs Ray on all machines (pip install 'prefloop[ray]'); allowed without it: local"
        )


def find_address(settings: RayCluster) -> tuple[str, int]:
    """Return host and port of the cluster's head.

    Raises:
        UserError: none is known, or nothing answers there.
    """
    named = settings.address
    if named == "auto":
        named = os.environ.get("RAY_ADDRESS", "")
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's own
        if not named:
            with contextlib.suppress(OSError):
                named = noted.read_text(encoding="utf-8").strip()
        if not named:
            raise UserError(
                f"cluster.address: auto, but RAY_ADDRESS is not set and no cluster runs here ({noted} is missing); "
                "allowed: HOST:PORT of a head that ray start --head has started"
            )
    host, _, port = named.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(f"cluster.address: {named!r}; allowed: auto, or HOST:PORT such as 10.0.0.5:6379")
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cluster.address: {named}: nothing answers ({told}); start it with ray start --head, or give the address "
            "of one that runs"
        ) from None
    return host, int(port)


@dataclass(frozen=True)
class Reservation:
    """Reserved cores and cards of one machine."""

    group: Any

    def release(self) -> None:
        """Give them back."""
        from ray.exceptions import RayError
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(RayError, ValueError, RuntimeError):
            remove_placement_group(self.group)


class Cluster:
    """A connection; ``close`` ends all actors of this driver."""

    def __init__(self, settings: RayCluster, root: Path, hidden: frozenset[str], *, joins: bool = False) -> None:
        """Connect, and check every machine.

        Args:
            settings: the address, and time limits.
            root: the run folder, which all machines must see.
            hidden: names of variables with keys.
            joins: whether this is a further process of a run, whose driver has checked the machines.

        Raises:
            UserError: nothing answers, or a machine lacks something.
        """
        require_ray()
        host, port = find_address(settings)
        self.settings, self.address = settings, f"{host}:{port}"
        self._home: Home = home_of(root, hidden, joins=joins)
        _connect(self.address, settings.connect_timeout, loopback=host in LOOPBACK and not _answers_others(port))
        if joins:
            return
        try:
            self._require_same()
        except BaseException:
            self.close()
            raise

    @property
    def machines(self) -> list[Capacity]:
        """Cores and cards of each machine that is up."""
        import ray

        wanted = ("CPU", "GPU")
        up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{name: float(found[name]) for name in wanted if name in found} for found in up]

    def place(self, share: Share) -> Reservation:
        """Reserve a place for one actor of ``share``, whole on one machine.

        Raises:
            NoPlaceError: no machine has so much, or none became free in time.
        """
        import ray
        from ray.util.placement_group import placement_group

        one = f"one {share.title} of {amounts(share.bundle)}"
        if not holds([replace(share, count=1)], self.machines):
            raise NoPlaceError(f"cluster: no machine that is up has a place for {one}")
        place = Reservation(placement_group([share.bundle], strategy="STRICT_PACK"))
        if not place.group.wait(self.settings.place_timeout):
            free = amounts(ray.available_resources())
            place.release()
            raise NoPlaceError(
                f"cluster: no place for {one} on one machine within {number_of(self.settings.place_timeout, 'second')} "
                f"(cluster.place_timeout); free in all: {free}"
            )
        return place

    def actor(self, kind: type[Any], share: Share | None, place: Reservation | None, *further: Any) -> Any:
        """Start an actor of class ``kind``, which is never restarted; return its handle.

        Without a ``place`` it is on this machine: it ends with the driver in any case.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {
            "num_cpus": 0 if share is None else share.cpus,
            "num_gpus": 0 if share is None else share.cards,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 8,
            "runtime_env": self.environment(),
        }
        if place is None:
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        else:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(place.group, 0)
        return ray.remote(kind).options(**options).remote(self._home, self.settings.lost_after, *further)

    def environment(self, **variables: str) -> dict[str, Any]:
        """Return the runtime environment of actors: keys of their machine are blank from the start."""
        blank = dict.fromkeys(self._home.hidden, "")
        return {"env_vars": {**blank, **RAY_SWITCHES, **variables}}

    def close(self) -> None:
        """Disconnect."""
        import ray

        ray.shutdown()

    def _require_same(self) -> None:
        """Raise ``UserError`` if a machine has other code, or does not see the run folder."""
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        check = ray.remote(mismatch)
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
                asked[check.options(**options).remote(self._home)] = node["NodeManagerHostname"]
        done, late = ray.wait([*asked], num_returns=len(asked), timeout=self.settings.connect_timeout)
        for answer in done:
            try:
                lacking = ray.get(answer)
            except RayError as error:
                said = str(error).strip().splitlines()[-1]
                raise UserError(f"cluster: {asked[answer]} cannot run prefloop: {said}") from None
            if lacking is not None:
                raise UserError(f"cluster: {lacking}")
        if late:
            silent = ", ".join(sorted(asked[answer] for answer in late))
            raise UserError(
                f"cluster: no answer from {silent} within {number_of(self.settings.connect_timeout, 'second')} "
                "(cluster.connect_timeout)"
            )


def make_token_private() -> None:
    """Let nobody else read the file with Ray's token, which Ray itself writes for everybody to read."""
    file = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _answers_others(port: int) -> bool:
    """Whether ``port`` of this machine also answers at the address under which other machines know it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Of a datagram socket this sends nothing; it chooses the interface.
        probe.connect(("192.0.2.1", 9))
        own = probe.getsockname()[0]
        socket.create_connection((own, port), PROBE_SECONDS).close()
        return not own.startswith("127.")
    return False


def prepare_ray(*, loopback: bool) -> None:
    """Set what Ray reads when it is first imported; ``loopback``: the cluster is on this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A call after the disconnection would start a cluster on this machine, and write a token that all may read.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if loopback:
        # Without it Ray would look for the cluster at an address of this machine that others reach.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _worth_saying(record: logging.LogRecord) -> bool:
    """Whether a line of Ray's is not the one that tells of its own SIGTERM handler: a run has another."""
    return "SIGTERM handler is not set" not in record.getMessage()


def _connect(address: str, seconds: float, *, loopback: bool) -> None:
    """Connect to Ray; what answers at the address may be no Ray, of which Ray's client tells only after minutes."""
    prepare_ray(loopback=loopback)
    make_token_private()
    import ray

    logging.getLogger("ray._private.worker").addFilter(_worth_saying)
    failed: list[Exception] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="prefloop")
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=connect, name="ray-connect", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise UserError(
            f"cluster.address: {address}: what answers there is no Ray cluster, or it did not let this machine in "
            f"within {number_of(seconds, 'second')} (cluster.connect_timeout)"
        )
    if failed:
        raise UserError(f"cluster.address: {address}: {str(failed[0]).strip().splitlines()[0]}") from failed[0]
