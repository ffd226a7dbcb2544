"""A child's output: through a pipe into its log, without keys, whatever writes it and in whatever pieces.

Print, ``sys.stdout.buffer``, ``os.write``, native code and the processes that the child starts all share the pipe.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

from pipeline.safe_text import KeylessLines, redacted

_PIECE = 1 << 16
# Bytes at the end of a log in which its last lines are looked for.
_TAIL_BYTES = 8192


class ChildOutput:
    """The pipe, and the thread that writes to ``log`` until every process with the pipe's other end has ended."""

    def __init__(self, log: Path, secrets: tuple[str, ...]) -> None:
        """``secrets``: texts that are not written."""
        self._lines = KeylessLines(secrets)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._read, self.end = os.pipe()
        self._thread = threading.Thread(target=self._follow, name="child-output", daemon=True)
        self._thread.start()

    def started(self) -> None:
        """Close this process's copy of the pipe's ``end``, once the child has its own."""
        os.close(self.end)

    def finish(self, seconds: float) -> None:
        """Wait until all output of the ended child is written; at most ``seconds``, if a process outlives it."""
        self._thread.join(seconds)

    def _follow(self) -> None:
        while piece := os.read(self._read, _PIECE):
            self._write(self._lines.feed(piece))
        self._write(self._lines.end())
        os.close(self._read)
        os.close(self._log)

    def _write(self, text: bytes) -> None:
        # On a full disk lines are lost: a child that waits for a full pipe would hang.
        with suppress(OSError):
            while text:
                text = text[os.write(self._log, text) :]


def last_words(log: Path, since: int, lines: int = 15) -> str:
    """Return the last ``lines`` of ``log`` after byte ``since``, under a heading and without keys, to end a message.

    Empty if there are none, or the log cannot be read.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            last = redacted(file.read().decode(errors="replace")).splitlines()[-lines:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in ([f"last lines of {log}:", *last] if last else []))
