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
    # Ray's own servers stay on the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "OMP_NUM_THREADS": "1",
}
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000, "node_ip_address": "127.0.0.1"}
# Ray's wait for a node is fixed, and a busy machine may need more.
TRIES = 4


class Nodes:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        """``folder``: for its session; a short path, since sockets lie in it."""
        self._before = {name: os.environ.get(name) for name in (*SWITCHES, "RAY_TMPDIR")}
        os.environ.update(SWITCHES, RAY_TMPDIR=str(folder))
        (folder / "ray").mkdir(exist_ok=True)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._add(include_dashboard=False)

    @property
    def address(self) -> str:
        return str(self._cluster.gcs_address)

    def add(self) -> Any:
        """One more machine."""
        return self._add()

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

    def _add(self, **more: Any) -> Any:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._cluster.add_node(wait=True, **NODE, **more)
            except Exception:
                if left == 0:
                    raise
                time.sleep(1)
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
