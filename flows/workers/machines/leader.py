"""The machine of rank 0, where the run is driven: it calls the others together and tells them what to train."""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from flows.workers.machines.board import Board
from flows.workers.messages import JoinPasses, RunStage, encode_text
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json
from pipeline.training.distributed.launch import Launch

logger = logging.getLogger(__name__)
# In the run folder: a word by which another machine knows that it sees the same folder.
TOKEN_FILE = "logs/machines.json"  # noqa: S105 - a file's name
# A machine that is silent for so long is lost.
SILENCE_SECONDS = 60.0
LOOK_SECONDS = 0.2


class OtherMachines:
    """The machines of rank 1 and on, each of which has answered."""

    def __init__(self, launch: Launch, root: Path, config: Mapping[str, JsonValue], patience: float) -> None:
        """Open the board and wait for them.

        Args:
            launch: their number, and the address.
            root: the run folder.
            config: as JSON; theirs must be the same.
            patience: seconds that they may take to come.

        Raises:
            UserError: one of them has another config, other versions or another run folder.
            RunError: one did not come.
        """
        assert launch.address is not None, "checked when it was read"
        self._ranks = range(1, launch.machines)
        self._board = Board.host(launch.address, launch.port)
        self._beats = dict.fromkeys(self._ranks, (0, time.monotonic()))
        token = uuid4().hex
        (root / TOKEN_FILE).parent.mkdir(parents=True, exist_ok=True)
        write_json(root / TOKEN_FILE, {"token": token})
        self._board.put("token", token)
        self._board.put("versions", {**machine_versions()})
        self._board.put("config", dict(config))
        self._board.put("launch", shape_of(launch))
        # Last: who finds it, finds the rest.
        self._board.put("open", True)
        self._call_together(launch, patience)

    def _call_together(self, launch: Launch, patience: float) -> None:
        deadline = time.monotonic() + patience
        while missing := [rank for rank in self._ranks if self._board.get(f"here/{rank}") is None]:
            refused = [self._board.get(f"refused/{rank}") for rank in self._ranks]
            for rank, text in zip(self._ranks, refused, strict=True):
                if text is not None:
                    raise UserError(f"machine {rank}: {text}")
            if time.monotonic() > deadline:
                ranks = ", ".join(map(str, missing))
                raise RunError(
                    f"num_machines: {launch.machines}, but no machine of rank {ranks} came to {launch.address}, port "
                    f"{launch.port}, within {patience:.0f} s; start the same command there with --machine-rank {ranks}"
                )
            time.sleep(LOOK_SECONDS)
        for rank in self._ranks:
            logger.info("machine %d: %s", rank, self._board.get(f"here/{rank}"))

    def begin(self, request: RunStage | JoinPasses) -> int:
        """Tell them to do their part of ``request``; return its number."""
        # Nobody has looked for signs of life since the last stage.
        self._beats = {rank: (beats, time.monotonic()) for rank, (beats, _) in self._beats.items()}
        number = self._board.count("requests") + 1
        self._board.put(f"request/{number}", encode_text(request))
        self._board.count("requests", 1)
        return number

    def trouble(self) -> Exception | None:
        """Return what ended one of them, or that one is silent; None if all is well."""
        for rank in self._ranks:
            failed = self._board.get(f"failed/{rank}")
            if failed is not None:
                return RunError(f"machine {rank}: {failed}")
            beats, since = self._board.count(f"beat/{rank}"), time.monotonic()
            if beats != self._beats[rank][0]:
                self._beats[rank] = beats, since
            elif since - self._beats[rank][1] > SILENCE_SECONDS:
                return RunError(
                    f"machine {rank}: silent for {SILENCE_SECONDS:.0f} s; it is gone, or the network failed"
                )
        return None

    def finish(self, number: int, patience: float) -> None:
        """Wait until all have done request ``number``.

        Raises:
            RunError: one has failed, or did not end within ``patience`` seconds.
        """
        deadline = time.monotonic() + patience
        while late := [rank for rank in self._ranks if self._board.count(f"done/{rank}") < number]:
            trouble = self.trouble()
            if trouble is not None:
                raise trouble
            if time.monotonic() > deadline:
                raise RunError(f"machine {late[0]}: did not end its part within {patience:.0f} s")
            time.sleep(LOOK_SECONDS)


def machine_versions() -> dict[str, str]:
    """Return the versions that must be the same on all machines, by name."""
    packages = ("prefloop", "torch", "transformers", "accelerate", "peft")
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: importlib.metadata.version(name) for name in packages}}


def shape_of(launch: Launch) -> dict[str, JsonValue]:
    """Return what all machines' accelerate configs must agree on, by its names there."""
    return {
        "num_machines": launch.machines,
        "num_processes": launch.processes,
        "distributed_type": launch.kind,
        "use_cpu": launch.cpu,
        "fsdp_config": None if launch.sharding is None else launch.sharding.model_dump(mode="json", by_alias=True),
        "deepspeed_config": None if launch.zero is None else launch.zero.model_dump(mode="json", by_alias=True),
    }
