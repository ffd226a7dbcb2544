"""A Ray cluster of this machine: a head and worker nodes of one core each, all on the loopback interface."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

# Ray reads them when it is first imported, and hands them on to its own processes.
SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # With a token, Ray would write it to the home folder, where others may read it.
    "RAY_AUTH_MODE": "disabled",
    # No cluster for calls that come after the end.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray's own servers stay on the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # No worker processes before they are needed: each costs seconds of a core.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_enable_metrics_collection": "0",
    # A busy machine is no failure.
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_health_check_timeout_ms": "60000",
    "OMP_NUM_THREADS": "1",
}
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000, "node_ip_address": "127.0.0.1"}
# Nothing here scales a cluster, nor shows its logs elsewhere.
HEAD = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
NODE_SECONDS = 300.0
# Ray gives a node's own processes 30 seconds, and a busy machine may need more.
TRIES = 4


class Nodes:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        """``folder``: for its session; a short path, since sockets lie in it."""
        self._before = {name: os.environ.get(name) for name in (*SWITCHES, "RAY_TMPDIR")}
        os.environ.update(SWITCHES, RAY_TMPDIR=str(folder))
        (folder / "ray").mkdir(exist_ok=True)
        self._cluster = self._begin()

    @property
    def address(self) -> str:
        return str(self._cluster.gcs_address)

    def lose(self, node: Any, *pids: int) -> None:
        """A machine that is gone: its daemon, and the processes that the daemon would leave."""
        workers = workers_of(node)
        self._cluster.remove_node(node, allow_graceful=False)
        kill(*workers, *pids)

    def close(self) -> None:
        with suppress(Exception):
            self._cluster.shutdown()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def add(self) -> Any:
        """One more machine."""
        for left in range(TRIES - 1, -1, -1):
            known = {*self._cluster.worker_nodes}
            try:
                node = self._cluster.add_node(wait=False, **NODE)
                self._cluster._wait_for_node(node, timeout=NODE_SECONDS)
            except Exception:
                for failed in {*self._cluster.worker_nodes} - known:
                    self._cluster.remove_node(failed, allow_graceful=False)
                if left == 0:
                    raise
                time.sleep(1)
            else:
                return node
        raise AssertionError("unreachable")

    def _begin(self) -> Any:
        """A cluster whose head is up. A head that comes up too late is of no use, and neither is its cluster."""
        from ray.cluster_utils import Cluster

        for left in range(TRIES - 1, -1, -1):
            cluster = Cluster()
            try:
                node = cluster.add_node(wait=False, **NODE, **HEAD)
                cluster._wait_for_node(node, timeout=NODE_SECONDS)
            except Exception:
                with suppress(Exception):
                    cluster.shutdown()
                if left == 0:
                    raise
                time.sleep(1)
            else:
                return cluster
        raise AssertionError("unreachable")


def workers_of(node: Any) -> list[int]:
    """The processes that a node's daemon has started."""
    raylet = node.all_processes["raylet"][0].process.pid
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(raylet).children(recursive=True)]
    return []


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def nodes(folder: Path) -> Iterator[Nodes]:
    cluster = Nodes(folder)
    try:
        yield cluster
    finally:
        cluster.close()
