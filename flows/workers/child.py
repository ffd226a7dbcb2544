"""A child process that stays warm and answers requests: messages over a socket, no pickle.

The child's own side is ``flows.workers.serving``. Its output goes to a log file. It ends with its parent, even in the
middle of work.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic

from flows.workers.logs.child_output import ChildOutput, last_words
from flows.workers.messages import (
    LENGTH_BYTES,
    RAISED,
    Done,
    Failed,
    Further,
    P,
    R,
    Request,
    Service,
    decode,
    encode,
    frame_length,
    name_of,
    with_length,
)
from flows.workers.pool.waiting import thread_variables
from flows.workers.silence import Silence
from pipeline.errors import RunError
from pipeline.safe_text import secrets_of
from pipeline.types.counts import number_of

_CLOSE_SECONDS = 5.0
# A child reads all the time, whatever it is doing.
_SEND_SECONDS = 60.0
# Time for the last output of an ended child; a process of its own that outlives it may hold the pipe for longer.
_OUTPUT_SECONDS = 5.0
# Variables of a process that talks to Prefect; no child does.
_NOT_FOR_CHILDREN = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_KEY")


class Child(Generic[P]):
    """A process running ``python -m service.entry``, ready for calls once constructed.

    It leads its own process group: Ctrl-C reaches only the parent, and ``kill`` also ends the
    child's own children.
    """

    def __init__(
        self,
        service: Service[P],
        init: Request,
        log: Path,
        start_timeout: float,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        """Start the child and send it ``init``.

        Args:
            service: the module whose ``main`` serves, and the type of its progress messages.
            init: the first request, answered by ``Done``.
            log: file for its output.
            start_timeout: in seconds.
            env: variables to add to this process's environment, or to remove (None).

        Raises:
            RunError: it did not answer within ``start_timeout`` seconds.
            UserError: it found a mistake in ``init``.
        """
        self.log = log
        self._name = service.entry
        self._progress = service.progress
        self._lock = threading.Lock()
        self._buffer = bytearray()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log.stat().st_size if log.exists() else 0
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", service.entry, "--socket", str(theirs.fileno()), "--parent", str(os.getpid())]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict.fromkeys(_NOT_FOR_CHILDREN), **(env or {})}
        given = {name: value for name, value in environment.items() if value is not None}
        given |= thread_variables(given)
        known = {*secrets_of(given), *secrets_of()}
        self._output = ChildOutput(log, tuple(sorted(known, key=len, reverse=True)))
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._output.end,
                    stderr=self._output.end,
                    pass_fds=[theirs.fileno()],
                    env=given,
                    process_group=0,
                )
        finally:
            self._output.started()
        try:
            self.call(init, Done, start_timeout)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """True if the process is running."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def call(
        self, request: Request, reply: type[R], timeout: float | None, on_progress: Callable[[P], None] | None = None
    ) -> R:
        """Send ``request`` and return the child's ``reply``; pass progress to ``on_progress``.

        ``timeout`` is in seconds of silence, see ``Silence``: each progress message restarts it. None: no limit.

        Raises:
            UserError, Paused: the handler raised one; same text.
            RunError: the handler failed otherwise, the child died, ``timeout`` seconds passed, or the child sent an
                unexpected message. Except in the first case the process is gone; if it died or hung, the message
                ends with its last log lines.
        """
        return reply_of(self.stream(request, reply, timeout), on_progress)

    def stream(self, request: Request, reply: type[R], timeout: float | None) -> Generator[P, None, R]:
        """Like ``call``, but yield the progress messages; the child keeps working in the meantime.

        Abandoning the iteration ends the child, which would otherwise still be working.
        """
        name, kinds = name_of(request), (self._progress, reply, Failed)
        with self._lock:
            try:
                self._send(request, timeout)
                silence = Silence(self._process.pid, timeout)
                while isinstance(message := decode(self._receive(silence), kinds), self._progress):
                    yield message
                    silence.restart()
            except TimeoutError as error:
                self.kill()
                raise RunError(f"{self._name}: {name} {error} and was ended{self._last_words()}") from error
            except OSError as error:
                self.kill()
                raise RunError(f"{self._name}: died during {name} ({self._cause()}){self._last_words()}") from error
            except ValueError as error:
                self.kill()
                raise RunError(f"{self._name}: malformed answer to {name}: {error}") from error
            except BaseException:
                self.kill()
                raise
        if isinstance(message, Failed):
            raise RAISED[message.kind](message.text)
        assert isinstance(message, reply)
        return message

    def send(self, further: Further) -> None:
        """Send ``further`` to the call whose ``stream`` is being read; a child that has died is noticed there."""
        try:
            self._send(further, _SEND_SECONDS)
        except TimeoutError:
            # Half a message may be on its way.
            self.kill()
        except OSError:
            return

    def close(self) -> None:
        """Let the child end by itself; kill it after a few seconds."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the child and its own children at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()
        self._output.finish(_OUTPUT_SECONDS)

    def __enter__(self) -> "Child[P]":
        """Do nothing: the child has been running since it was constructed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or kill after an error."""
        if error is None:
            self.close()
        else:
            self.kill()

    def _send(self, request: Request, timeout: float | None) -> None:
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(with_length(encode(request)))
        except TimeoutError as error:
            raise TimeoutError(f"was not read for {number_of(timeout or 0.0, 'second')}") from error

    def _receive(self, silence: Silence) -> bytes:
        size = frame_length(self._bytes(LENGTH_BYTES, silence))
        return self._bytes(size, silence)

    def _bytes(self, count: int, silence: Silence) -> bytes:
        """The next ``count`` bytes; what came after them is kept."""
        while len(self._buffer) < count:
            self._socket.settimeout(silence.until_look())
            try:
                piece = self._socket.recv(1 << 20)
            except TimeoutError:
                silence.look()
                continue
            if not piece:
                raise ConnectionResetError
            self._buffer += piece
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _cause(self) -> str:
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        return last_words(self.log, self._log_start)


def reply_of(messages: Generator[P, None, R], on_progress: Callable[[P], None] | None) -> R:
    """Read the ``stream`` of a call to its end, pass its progress on, and return the reply."""
    with contextlib.closing(messages):
        while True:
            try:
                progress = next(messages)
            except StopIteration as end:
                result: R = end.value
                return result
            if on_progress is not None:
                on_progress(progress)
