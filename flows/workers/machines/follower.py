"""A machine of rank 1 or on: it starts its training processes, and they do what the machine of rank 0 tells them.

It ends with the run, as the lease in the run folder says, or with an error if the lease's holder is gone.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.lease import LEASE_FILE
from flows.workers.child import Child
from flows.workers.followers import share_of_cores, start_processes
from flows.workers.machines.board import Board, BoardLostError
from flows.workers.machines.leader import LOOK_SECONDS, TOKEN_FILE, machine_versions, shape_of
from flows.workers.messages import Done, JoinPasses, RunStage, StageProgress, TrainerInit, decode
from flows.workers.patience import further_seconds
from flows.workers.pool.cards import VISIBLE, cards_of_launch
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.storage.holder import PATIENCE_SECONDS
from pipeline.training.distributed.launch import Launch

# A network file system may show a new file late.
FOLDER_SECONDS = 60.0
_Say = Callable[[str], None]


class FollowingMachine:
    """This machine's part in a run that another one drives."""

    def __init__(self, launch: Launch, root: Path, load: Callable[[], RunConfig], patience: float, say: _Say) -> None:
        """See the class.

        Args:
            launch: its rank, and the address of the machine of rank 0.
            root: the run folder, as this machine sees it.
            load: reads the config, when the run folder is there.
            patience: seconds that the machine of rank 0 may take to begin.
            say: tells the user what happens.
        """
        self._launch, self._root, self._load, self._patience, self._say = launch, root, load, patience, say
        self._rank, self._owner = launch.machine, f"{socket.gethostname()}, process {os.getpid()}"
        self._children: list[Child[StageProgress]] = []
        self._working = False
        self._done = 0

    def follow(self) -> None:
        """Do what is asked until the run ends.

        Raises:
            UserError: config, versions, rank or run folder do not fit.
            RunError: the run did not begin, has ended in the middle of a stage, or one of the processes failed.
        """
        address, port = self._launch.address, self._launch.port
        assert address is not None, "checked when it was read"
        self._say(f"machine {self._rank}: waiting for machine 0 at {address}, port {port}")
        lease = _WatchedLease(self._root / LEASE_FILE)
        deadline = time.monotonic() + self._patience
        while True:
            board = Board.reach(address, port)
            if board is not None:
                self._take_part(board, lease)
            if lease.over():
                break
            if not lease.seen and time.monotonic() > deadline:
                raise RunError(
                    f"machine {self._rank}: machine 0 did not begin within {self._patience:.0f} s: nothing answers at "
                    f"{address}, port {port}, and nobody runs {self._root}; start the same command there with "
                    "--machine-rank 0"
                )
            time.sleep(LOOK_SECONDS)
        if self._working:
            raise RunError("machine 0 has ended in the middle of a stage; the same command on all machines goes on")
        self._say(f"machine {self._rank}: the run has ended")

    def _take_part(self, board: Board, lease: "_WatchedLease") -> None:
        """Serve until the board is gone: the trainer of machine 0 ends and starts again between stages."""
        try:
            with suppress(BoardLostError):
                config = self._sign_in(board)
                lease.seen, self._working = True, False
                self._serve(board, config)
        finally:
            self._end_processes()

    def _sign_in(self, board: Board) -> RunConfig:
        owner = board.claim(f"machine/{self._rank}", self._owner)
        if owner != self._owner:
            raise UserError(
                f"machine_rank: {self._rank} is taken by {owner}; allowed: 1 to {self._launch.machines - 1}, each once"
            )
        self._wait_for(board, "open")
        try:
            require_same(machine_versions(), board.get("versions"))
            self._require_same_folder(board)
            require_same(shape_of(self._launch), board.get("launch"))
            config = self._load()
            require_same(comparable(config.model_dump(mode="json")), comparable(board.get("config")))
        except UserError as error:
            board.put(f"refused/{self._rank}", str(error))
            raise
        self._done = board.count("requests")
        board.put(f"here/{self._rank}", self._owner)
        self._say(f"machine {self._rank}: has joined the run")
        return config

    def _wait_for(self, board: Board, name: str) -> None:
        deadline = time.monotonic() + FOLDER_SECONDS
        while board.get(name) is None:
            if time.monotonic() > deadline:
                raise RunError(f"machine 0 did not say what it runs within {FOLDER_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)

    def _require_same_folder(self, board: Board) -> None:
        """Raise ``UserError`` if the run folder is not the one that machine 0 writes to."""
        token, file = board.get("token"), self._root / TOKEN_FILE
        deadline = time.monotonic() + FOLDER_SECONDS
        while True:
            with suppress(OSError, ValueError, KeyError):
                if json.loads(file.read_text(encoding="utf-8"))["token"] == token:
                    return
            if time.monotonic() > deadline:
                raise UserError(
                    f"--run-dir: {self._root} here is not the folder that machine 0 writes to: {TOKEN_FILE} is "
                    f"missing or another after {FOLDER_SECONDS:.0f} s; allowed: a folder that all machines share"
                )
            board.get("open")
            time.sleep(LOOK_SECONDS)

    def _serve(self, board: Board, config: RunConfig) -> None:
        """Do one request after the other. Raises ``BoardLostError`` at the end of the other machine's trainer."""
        while True:
            board.count(f"beat/{self._rank}", 1)
            told = board.get(f"request/{self._done + 1}")
            if told is None:
                time.sleep(LOOK_SECONDS)
                continue
            self._working = True
            kinds: tuple[type[RunStage | JoinPasses], ...] = (RunStage, JoinPasses)
            self._work(board, config, decode(str(told), kinds))
            self._done += 1
            self._working = False
            board.count(f"done/{self._rank}", 1)

    def _work(self, board: Board, config: RunConfig, request: RunStage | JoinPasses) -> None:
        """Let this machine's processes do their part; if one fails, tell the others why."""
        with ThreadPoolExecutor(self._launch.on_each) as pool:
            try:
                if not self._children:
                    self._watched(board, [pool.submit(self._start, config)])
                self._watched(board, [pool.submit(child.call, request, Done, None) for child in self._children])
            except BaseException as error:
                if isinstance(error, (UserError, RunError)):
                    with suppress(BoardLostError):
                        board.put(f"failed/{self._rank}", str(error))
                # The others' calls wait for the one that failed.
                self._end_processes()
                raise

    def _start(self, config: RunConfig) -> None:
        init = TrainerInit(str(self._root), config.model_dump(mode="json"))
        cards = cards_of_launch(self._launch.devices)
        further = {"TORCH_CPP_LOG_LEVEL": None, **({} if cards is None else {VISIBLE: cards})}
        timeout, share = config.sampler.start_timeout + further_seconds(config), share_of_cores(self._launch.on_each)
        log = self._root / "logs" / "trainer.log"
        self._children = start_processes(self._launch.ranks, init, log, timeout, share, further)

    def _watched(self, board: Board, work: Sequence[Future[object]]) -> None:
        """Give signs of life until all ``work`` is done; raise the first error of any."""
        open_ = set(work)
        while open_:
            board.count(f"beat/{self._rank}", 1)
            ended, open_ = wait(open_, LOOK_SECONDS, FIRST_EXCEPTION)
            for one in ended:
                one.result()

    def _end_processes(self) -> None:
        for child in self._children:
            child.kill()
        self._children = []


def require_same(ours: JsonValue | Mapping[str, str], theirs: JsonValue, name: str = "") -> None:
    """Raise ``UserError`` that names the first value in which ``ours`` differs from machine 0's."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            require_same(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
    elif ours != theirs:
        raise UserError(f"{name}: {ours} on this machine, but {theirs} on machine 0; allowed: the same on all machines")


def comparable(config: JsonValue) -> JsonValue:
    """Return a config without what may differ: each machine may have an accelerate file of its own."""
    assert isinstance(config, dict), "a config's JSON"
    return {name: value for name, value in config.items() if name != "accelerate"}


class _WatchedLease:
    """The lease of the run that machine 0 drives; clocks of machines are not compared.

    Attributes:
        seen: it has changed, so somebody runs here.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seen = False
        self._last, self._changed = self._read(), time.monotonic()

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None

    def over(self) -> bool:
        """Return whether the run has ended. Raises ``RunError`` if its holder is gone without a word."""
        found = self._read()
        if found != self._last:
            self.seen, self._last, self._changed = True, found, time.monotonic()
        if not self.seen:
            return False
        if found is not None and time.monotonic() - self._changed > PATIENCE_SECONDS:
            raise RunError(
                f"{self._file}: no heartbeat of machine 0 for {PATIENCE_SECONDS:.0f} s: it is gone; the same command "
                "on all machines goes on"
            )
        return found is None
