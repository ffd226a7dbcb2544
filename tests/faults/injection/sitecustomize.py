"""Loaded by every interpreter of a run under fire (its folder is on PYTHONPATH): dies where it is told to.

``FAULTS_RUN`` is the run's folder, which also marks all of the run's processes. ``FAULTS_LEDGER`` is a file to which
each process appends what happened, a JSON object a line. ``FAULTS_ORDERS`` is a file, read again whenever it changes:
``{"number": n, "role": which process, "point": which place, "path": what the file's path must hold, "after": how often
that is passed before, "delay": seconds}``.
"""

import builtins
import importlib.abc
import importlib.machinery
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

RUN = os.environ.get("FAULTS_RUN", "")
ROLES = {
    "pipeline.sampling.watchdog": "watchdog",
    "flows.workers.sampler_service": "sampler",
    "flows.stages.trainer_service": "trainer",
    "uvicorn": "server",
    "flows": "parent",
    "-c": "script",
}


class Points:
    """The places that this process passes, and the order that it has to die at one of them."""

    def __init__(self) -> None:
        self.role = next((role for name, role in ROLES.items() if name in sys.orig_argv), "other")
        self._orders = os.environ["FAULTS_ORDERS"]
        self._ledger = os.open(os.environ["FAULTS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._lock = threading.RLock()
        self._changed = 0
        self._order: dict[str, Any] = {}
        self.note("started")

    def note(self, event: str, **facts: object) -> None:
        """Write down what happened."""
        line = {"event": event, "role": self.role, "pid": os.getpid(), **facts}
        os.write(self._ledger, json.dumps(line).encode() + b"\n")

    def passes(self, point: str, path: object = "") -> None:
        """Pass ``point``, or die there."""
        with self._lock:
            self._read_order()
            if (self._order.get("role"), self._order.get("point")) != (self.role, point):
                return
            if self._order["path"] not in os.fsdecode(path):  # type: ignore[arg-type]
                return
            self._order["after"] -= 1
            if self._order["after"] >= 0:
                return
            order, self._order = self._order, {}
        if order["delay"]:
            threading.Thread(target=self._die, args=(order,), daemon=True).start()
        else:
            self._die(order)

    def _die(self, order: dict[str, Any]) -> None:
        time.sleep(order["delay"])
        self.note("killed", number=order["number"], point=order["point"])
        os.kill(os.getpid(), signal.SIGKILL)

    def _read_order(self) -> None:
        try:
            changed = os.stat(self._orders).st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._changed:
            return
        self._changed = changed
        handle = os.open(self._orders, os.O_RDONLY)
        try:
            self._order = json.loads(os.read(handle, 1 << 16))
        finally:
            os.close(handle)


def inside(path: object) -> bool:
    """Whether a path is one of the run's folder."""
    try:
        name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
    except TypeError:
        return False
    # Log files are no part of what a run has done.
    return name.startswith(RUN + os.sep) and not name.startswith(os.path.join(RUN, "logs") + os.sep)


def watch_files(points: Points) -> None:
    """Every write, flush to disk, rename and removal in the run's folder."""
    plain_open, fsync = io.open, os.fsync

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa+") and inside(file):
            points.passes("write", file)
        return plain_open(file, mode, *args, **kwargs)

    def syncing(descriptor: Any) -> None:
        points.passes("fsync")
        fsync(descriptor)

    def renaming(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **kwargs: Any) -> None:
            ours = inside(target)
            if ours:
                points.passes("rename", target)
            rename(source, target, **kwargs)
            if ours:
                points.note("renamed", path=os.path.relpath(target, RUN))
                points.passes("renamed", target)

        return renamed

    def removing(remove: Callable[..., None]) -> Callable[..., None]:
        def removed(path: Any, **kwargs: Any) -> None:
            # Relative to an open folder: how whole trees are removed.
            if "dir_fd" in kwargs or inside(path):
                points.passes("remove", path)
            remove(path, **kwargs)

        return removed

    io.open = builtins.open = opening  # type: ignore[assignment]
    os.fsync = syncing
    os.rename, os.replace = renaming(os.rename), renaming(os.replace)
    supported = os.supports_dir_fd
    os.unlink, os.rmdir = removing(os.unlink), removing(os.rmdir)
    # What decides how ``shutil.rmtree`` goes about it.
    supported.update({os.unlink, os.rmdir})


def watch_tables(points: Points, module: ModuleType) -> None:
    """Parquet files are opened below Python."""
    before = module.ParquetWriter.__init__

    def opening(self: Any, where: Any, *args: Any, **kwargs: Any) -> None:
        if inside(where):
            points.passes("write", where)
        before(self, where, *args, **kwargs)

    module.ParquetWriter.__init__ = opening


def watch_weights(points: Points, module: ModuleType) -> None:
    """So are safetensors files."""
    before = module.save_file

    def saving(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        if inside(filename):
            points.passes("write", filename)
        before(tensors, filename, *args, **kwargs)

    module.save_file = saving


def watch_steps(points: Points, module: ModuleType) -> None:
    """Inside of each optimiser step."""
    module.register_optimizer_step_pre_hook(lambda *args: points.passes("step"))


def watch_engine(points: Points, module: ModuleType) -> None:
    """Weights that are loaded or swapped, and each prompt that is sampled."""
    engine = module.VllmEngine
    start, reload, sample = engine._start, engine._reload, engine.sample

    def starting(self: Any, path: str) -> None:
        points.passes("swap")
        start(self, path)

    def reloading(self: Any, path: str) -> bool:
        points.passes("swap")
        return bool(reload(self, path))

    def sampling(self: Any, requests: Any, settings: Any) -> Iterator[Any]:
        for request, answer in zip(requests, sample(self, requests, settings), strict=True):
            points.note("sampled", seed=request.seed)
            points.passes("sampled")
            yield answer

    engine._start, engine._reload, engine.sample = starting, reloading, sampling


def watch_judge(points: Points, module: ModuleType) -> None:
    """Calls to a judge, while they are under way."""
    client = module.ChatEndpoint
    before = client._post

    def posting(self: Any, body: Any) -> Any:
        points.passes("judge")
        return before(self, body)

    client._post = posting


WATCHED: dict[str, Callable[[Points, ModuleType], None]] = {
    "pyarrow.parquet.core": watch_tables,
    "safetensors.torch": watch_weights,
    "torch.optim.optimizer": watch_steps,
    "pipeline.sampling.vllm_engine": watch_engine,
    "reward_models.judge.endpoint": watch_judge,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds modules as ever, and has those in ``WATCHED`` watched once they are there."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        watch = WATCHED.get(name)
        spec = None if watch is None else importlib.machinery.PathFinder.find_spec(name, path)
        if watch is None or spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            watch(self._points, module)

        loader.exec_module = exec_module
        return spec


if RUN:
    made = Points()
    watch_files(made)
    sys.meta_path.insert(0, Finder(made))
