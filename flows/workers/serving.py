"""The child's side of ``flows.workers.child.Child``: answers the parent's requests, one after the other."""

import argparse
import contextlib
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from flows.workers.messages import (
    LENGTH_BYTES,
    RAISED,
    Failed,
    Further,
    Reply,
    Request,
    WireMessage,
    decode,
    encode,
    frame_length,
    name_of,
    with_length,
)
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import redacted
from pipeline.sampling.watchdog import end_with_parent

F = TypeVar("F", bound=Further)
# Takes the request, and the caller to whom it reports progress.
Handler = Callable[[Any, "Caller"], Reply]


class Caller:
    """The parent, as a child's handler sees it. All its messages are read at once, so that it never waits to send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._read, name="read-caller", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._connection.makefile("rb") as stream:
            while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
                size = frame_length(head)
                if len(message := stream.read(size)) < size:
                    break
                self._waiting.put(message)
        self._waiting.put(None)

    def __call__(self, message: WireMessage) -> None:
        """Send progress or the reply."""
        # If the parent is gone, the watchdog ends this process.
        with contextlib.suppress(OSError):
            self._connection.sendall(with_length(encode(message)))

    def next(self) -> bytes | None:
        """Wait for the next message; None if the parent has closed the connection."""
        return self._waiting.get()

    def further(self, kind: type[F], *, wait: bool) -> F | None:
        """Return what follows the request that is being answered; None: nothing yet, or no parent any more."""
        try:
            message = self._waiting.get(wait)
        except Empty:
            return None
        if message is None:
            # Whoever asks next must find the end too.
            self._waiting.put(None)
            return None
        return decode(message, (kind,))


def serve_calls(
    handlers: Mapping[type[Request], Handler],
    close: Callable[[], None] | None = None,
    further: Sequence[type[Further]] = (),
) -> None:
    """Answer the parent's requests until it closes the socket; the child's side of ``Child``.

    Args:
        handlers: one for each kind of request, including the constructor's ``init``.
        close: called at the end.
        further: kinds of messages that may follow a request; those that a failed handler has left are dropped.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(options.parent)
    with socket.socket(fileno=options.socket) as connection:
        # A grandchild that inherited the socket would keep the parent waiting for a dead child.
        connection.set_inheritable(False)
        caller = Caller(connection)
        while (message := caller.next()) is not None:
            _answer(caller, handlers, message, further)
    if close is not None:
        close()


def _answer(
    caller: Caller, handlers: Mapping[type[Request], Handler], message: bytes, further: Sequence[type[Further]]
) -> None:
    name = "request"
    try:
        request = decode(message, (*handlers, *further))
        if isinstance(request, Further):
            return
        name = name_of(request)
        reply = handlers[type(request)](request, caller)
    except (UserError, RunError, Paused) as error:
        caller(Failed(redacted(error), next(kind for kind, raised in RAISED.items() if isinstance(error, raised))))
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure is shown to the user
        # The log may be on a full disk.
        with contextlib.suppress(OSError):
            print(redacted(traceback.format_exc()), file=sys.stderr)
        caller(Failed(redacted(f"{name}: {type(error).__name__}: {error}"), "run"))
    else:
        caller(reply)
