"""What the machines that train together tell each other: values by name, in torch's TCPStore on the machine of rank 0.

The training processes find each other in the same store. It has no password: whoever reaches the port can end a run,
so the network between the machines must be a private one.
"""

import json
import socket
import threading
from datetime import timedelta
from typing import Any

import torch
from pydantic import JsonValue

from pipeline.errors import RunError, UserError

# torch does not say that it exports its stores.
_torch: Any = torch.distributed
CONNECT_SECONDS = 5.0


class BoardLostError(RunError):
    """The machine of rank 0 does not answer any more."""


class Board:
    """One machine's connection to the board."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._one = threading.Lock()

    @classmethod
    def host(cls, address: str, port: int) -> "Board":
        """Open the board, at this address alone.

        Raises:
            UserError: the address is not this machine's, or the port is taken.
        """
        try:
            family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
            listening = socket.create_server((address, port), family=family)
        except OSError as error:
            raise UserError(
                f"accelerate: main_process_ip: {address}, main_process_port: {port}: {error.strerror or error}; "
                "allowed: an address of this machine, which has rank 0, and a port that is free on it"
            ) from None
        wait = timedelta(seconds=CONNECT_SECONDS)
        with listening:
            # The server closes it.
            own = listening.detach()
        return cls(_torch.TCPStore(address, port, None, True, wait, False, master_listen_fd=own))

    @classmethod
    def reach(cls, address: str, port: int) -> "Board | None":
        """Connect to the board; None if it is not open.

        Raises:
            UserError: no such address.
        """
        try:
            # torch's client would print each failure.
            socket.create_connection((address, port), CONNECT_SECONDS).close()
        except socket.gaierror as error:
            raise UserError(f"accelerate: main_process_ip: {address}: {error.strerror or error}") from None
        except OSError:
            return None
        try:
            return cls(_torch.TCPStore(address, port, None, False, timedelta(seconds=CONNECT_SECONDS)))
        except torch.distributed.DistError:
            return None

    def put(self, name: str, value: JsonValue) -> None:
        """Write a value. Raises ``BoardLostError``."""
        with self._one, _Answering():
            self._store.set(name, json.dumps(value))

    def get(self, name: str) -> JsonValue:
        """Return a value, null if it was not written. Raises ``BoardLostError``."""
        with self._one, _Answering():
            found: JsonValue = json.loads(self._store.get(name)) if self._store.check([name]) else None
            return found

    def claim(self, name: str, owner: str) -> str:
        """Write ``owner`` unless another was there before; return who is. Raises ``BoardLostError``."""
        with self._one, _Answering():
            found: bytes = self._store.compare_set(name, "", owner)
            return found.decode()

    def count(self, name: str, more: int = 0) -> int:
        """Return a number, from 0, after adding ``more``. Raises ``BoardLostError``."""
        with self._one, _Answering():
            return int(self._store.add(name, more))


class _Answering:
    """The block's errors of the connection become ``BoardLostError``."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.distributed.DistError):
            raise BoardLostError("machine 0 does not answer any more") from error
