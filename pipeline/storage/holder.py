"""Who writes a run: the process that its lease names, and whether it still runs. Torch-free."""

import json
import os
import platform
import shlex
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from pipeline.errors import RunLockedError

PATIENCE_SECONDS = 60.0
# How far a process's start may seem to move when the clock is set.
START_TOLERANCE = 2.0


@dataclass(frozen=True)
class Holder:
    """The writer of a run.

    Attributes:
        token: unique to this lease.
        machine: distinguishes boots of a machine, and containers, that have the same name.
        started: the process's start, seconds since 1970 by its machine's clock.
        beat: time of the last heartbeat, for people; ``beats``: their number so far.
        patience: seconds without a heartbeat after which another machine may take over.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    command: str
    beat: str
    beats: int = 0
    patience: float = PATIENCE_SECONDS

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}; last heartbeat {self.beat})"


def own_holder(patience: float) -> Holder:
    """A new holder: this process."""
    started = psutil.Process().create_time()
    command = shlex.join(["prefloop", *sys.argv[1:]])[:500]
    return Holder(uuid4().hex, socket.gethostname(), _machine(), os.getpid(), started, command, now(), 0, patience)


def _machine() -> str:
    """Identify the machine: process numbers are valid only within one boot and one container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def parse_holder(contents: bytes) -> Holder | None:
    """The holder that a lease with ``contents`` names; None if it does not tell."""
    try:
        return Holder(**json.loads(contents))
    except (ValueError, TypeError):
        return None


def runs(holder: Holder) -> bool:
    """Whether a holder of this machine still runs."""
    try:
        process = psutil.Process(holder.pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - holder.started) < START_TOLERANCE
        )
    except psutil.NoSuchProcess:
        return False


def refusal(place: object, holder: Holder | None) -> RunLockedError:
    """The error that names the ``holder`` of ``place``."""
    who = f": {holder}" if holder is not None else ""
    return RunLockedError(f"{place}: another prefloop process is writing to this run{who}; nothing was changed")


def say(place: object, what: str) -> None:
    """Tell the user what happens to the lease of ``place``."""
    print(f"{place}: {what}", file=sys.stderr)


def now() -> str:
    """The time for people, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
